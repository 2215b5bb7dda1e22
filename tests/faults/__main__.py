"""Faults by the dozen: `make faults` runs them all, `--quick` one of every kind.

The last line is JSON: for each kind [outcomes that held, outcomes], and `canary_hits`: what
`canary.hits` counts, of which there must be none.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

STUB = str(Path(__file__).with_name("stub"))
# For the workers of this process; its own sitecustomize has been looked for already.
os.environ["PYTHONPATH"] = os.pathsep.join([STUB, *sys.path, os.environ.get("PYTHONPATH", "")])
sys.path.insert(0, STUB)

import sitecustomize  # noqa: E402, F401  # puts the stub in place of the models

from lakescore.session import local_session  # noqa: E402
from tests.faults import canary, cases, changing  # noqa: E402
from tests.faults.lab import LOCAL, Lab, Record  # noqa: E402
from tests.jobs import FAULT_JOBS  # noqa: E402
from tests.tiny_models import tiny_model  # noqa: E402

# One trial, by its number and how many outcomes it has; returns how many of them held.
Case = Callable[[Lab, int, int], int]

# Each kind, and the outcomes of each of its trials in full and with --quick. What kills the idle
# driver that others use comes last.
KINDS: dict[str, tuple[Case, Sequence[int], Sequence[int]]] = {
    "worker_kills": (cases.worker_kills, [1] * 20, [1]),
    "executor_kills": (cases.executor_kills, [1] * 5, [1]),
    "double_starts": (cases.double_starts, [1] * 20, [1]),
    "concurrent_commits": (cases.concurrent_commits, [100], [4]),
    "poison_rows": (cases.poison_rows, [1] * 3, [1]),
    "cdf_steps": (changing.cdf_steps, [1, 4, 15, 30] * 10, [4]),
    "driver_kills": (cases.driver_kills, [1] * 50, [1]),
}


def main() -> None:
    """Run the kinds, print each trial that fails, and the tally."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one case of every kind")
    kinds = [*KINDS, "canary_hits"]
    parser.add_argument("--only", choices=kinds, nargs="+", default=kinds, help="these kinds alone")
    parser.add_argument("--seed", type=int, default=17)
    arguments = parser.parse_args()
    tally: dict[str, list[int] | int | None] = {}
    with tempfile.TemporaryDirectory(prefix="lakescore-faults-") as name:
        folder = Path(name)
        os.chdir(folder)  # MLflow keeps its artifacts beside where it is started
        os.environ["LAKESCORE_CACHE"] = str(folder / "cache")
        os.environ["SPARK_LOCAL_DIRS"] = str(folder / f"lab{LOCAL}")
        models = {
            "entities": str(tiny_model(folder / "entities")),
            "sentiment": str(tiny_model(folder / "sentiment", head="sequence-classification")),
        }
        record = Record(folder / "lab.record")
        os.environ["LAKESCORE_STUB_RECORD"] = str(record.folder)
        settings = FAULT_JOBS | {"spark.sql.warehouse.dir": str(folder / "warehouse")}
        with local_session(
            "faults", master="local[2,4]", settings=settings, log_file=folder / "lab.spark.log"
        ) as spark:
            with closing(Lab(spark, folder, models, random.Random(arguments.seed), record)) as lab:
                if "canary_hits" in arguments.only:
                    tally["canary_hits"] = _tried(
                        lab, lambda: canary.hits(lab, quick=arguments.quick)
                    )
                for kind, (case, full, quick) in KINDS.items():
                    if kind in arguments.only:
                        tally[kind] = _tally(lab, kind, case, quick if arguments.quick else full)
    print(json.dumps(tally))
    broken = any(value[0] < value[1] for value in tally.values() if isinstance(value, list))
    sys.exit(broken or tally.get("canary_hits", 0) != 0)


def _tally(lab: Lab, kind: str, case: Case, trials: Sequence[int]) -> list[int]:
    """Do the trials of a kind, and return how many outcomes held, and how many there are."""
    sums = [0, 0]
    for nth, outcomes in enumerate(trials):
        held = _tried(lab, lambda: case(lab, nth, outcomes)) or 0  # noqa: B023  # called at once
        print(
            f"{kind} {nth}: {'held' if held == outcomes else f'BROKEN, {held} of {outcomes} held'}",
            file=sys.stderr,
            flush=True,
        )
        sums[0] += held
        sums[1] += outcomes
    return sums


def _tried(lab: Lab, trial: Callable[[], int]) -> int | None:
    """Return what a trial does, or None where it raises: what comes after it goes on."""
    try:
        return trial()
    except Exception:  # of any kind
        traceback.print_exc()
        lab.close()  # drivers that are still at something
        return None


if __name__ == "__main__":
    main()
