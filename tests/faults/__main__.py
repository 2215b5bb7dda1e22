"""Faults by the dozen: `make faults` runs them all, `--quick` one of every kind.

The last line is JSON: for each kind [trials that held, trials].
"""

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

STUB = str(Path(__file__).with_name("stub"))
# For the workers of this process; its own sitecustomize has been looked for already.
os.environ["PYTHONPATH"] = os.pathsep.join([STUB, *sys.path, os.environ.get("PYTHONPATH", "")])
sys.path.insert(0, STUB)

import sitecustomize  # noqa: E402, F401  # puts the stub in place of the models

from lakescore.session import local_session  # noqa: E402
from tests.faults import canary, cases  # noqa: E402
from tests.faults.lab import Lab  # noqa: E402
from tests.jobs import BRIEF_JVM  # noqa: E402
from tests.tiny_models import tiny_model  # noqa: E402

Case = Callable[[Lab, int], Iterator[bool]]

# Each kind, its trials in full and with --quick.
KINDS: dict[str, tuple[Case, int, int]] = {
    "worker_kills": (cases.worker_kills, 20, 1),
    "executor_kills": (cases.executor_kills, 5, 1),
    "driver_kills": (cases.driver_kills, 50, 1),
    "double_starts": (cases.double_starts, 20, 2),
    "concurrent_commits": (cases.concurrent_commits, 25, 1),
    "poison_rows": (cases.poison_rows, 3, 1),
    "cdf_steps": (cases.cdf_steps, 500, 6),
}


def main() -> None:
    """Run the kinds, print each trial that fails, and the tally."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one of every kind")
    kinds = [*KINDS, "canary_hits"]
    parser.add_argument("--only", choices=kinds, nargs="+", default=kinds, help="these kinds alone")
    parser.add_argument("--seed", type=int, default=17)
    arguments = parser.parse_args()
    tally: dict[str, list[int] | int] = {}
    with tempfile.TemporaryDirectory(prefix="lakescore-faults-") as name:
        folder = Path(name)
        os.chdir(folder)  # MLflow keeps its artifacts beside where it is started
        os.environ["LAKESCORE_CACHE"] = str(folder / "cache")
        models = {
            "entities": str(tiny_model(folder / "entities")),
            "sentiment": str(tiny_model(folder / "sentiment", head="sequence-classification")),
        }
        settings = BRIEF_JVM | {"spark.sql.warehouse.dir": str(folder / "warehouse")}
        with local_session(
            "faults", master="local[2,4]", settings=settings, log_file=folder / "lab.spark.log"
        ) as spark:
            with closing(Lab(spark, folder, models, random.Random(arguments.seed))) as lab:
                for kind, (case, full, quick) in KINDS.items():
                    if kind in arguments.only:
                        outcomes = []
                        for held in case(lab, quick if arguments.quick else full):
                            outcomes.append(held)
                            said = "held" if held else "BROKEN"
                            print(f"{kind} {len(outcomes)}: {said}", file=sys.stderr, flush=True)
                        tally[kind] = [sum(outcomes), len(outcomes)]
                if "canary_hits" in arguments.only:
                    tally["canary_hits"] = canary.hits(lab)
    print(json.dumps(tally))
    broken = any(value[0] < value[1] for value in tally.values() if isinstance(value, list))
    sys.exit(bool(broken or tally.get("canary_hits")))


if __name__ == "__main__":
    main()
