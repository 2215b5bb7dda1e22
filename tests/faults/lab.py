"""What fault cases share: drivers to kill, tables to score, and the oracle."""

import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from lakescore import JobConfig, RunSummary, score
from lakescore.tables import load, version
from tests.faults.driver import RUNS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).with_name("stub")
ROWS_PER_FILE = 30
LOCAL = ".local"  # how the folder of a Spark's own files ends
WAIT_SECONDS = 300
ANSWER_SECONDS = 1_800


class Record:
    """What the workers of one driver write down as they score; see the stub."""

    def __init__(self, folder: Path) -> None:
        """Make the folder that LAKESCORE_STUB_RECORD is to name."""
        self.folder = folder
        self.clear()

    def clear(self) -> None:
        """Forget what was scored."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    @property
    def lengths(self) -> list[int]:
        """The rows of each Arrow batch that a scorer was given."""
        return [int(line) for file in self.folder.iterdir() for line in file.read_text().split()]

    @property
    def rows(self) -> int:
        """How many rows scorers were given, those of a worker that died among them."""
        return sum(self.lengths)

    @property
    def at_work(self) -> list[int]:
        """The processes that have not ended a batch which they began."""
        files = self.folder.iterdir()
        return sorted(int(file.name) for file in files if not file.read_text().endswith("\n"))


@dataclass(frozen=True)
class Count:
    """Rows by what became of them; `rows` went in."""

    scored: int
    failed: Mapping[str, int]

    @property
    def rows(self) -> int:
        """Those that were scored and those that failed."""
        return self.scored + sum(self.failed.values())


@dataclass
class Lab:
    """A warm session with the stub model, a folder for everything, and the fate of this run."""

    spark: "SparkSession"
    folder: Path
    models: Mapping[str, str]
    rng: random.Random
    scored: Record
    drivers: dict[Any, "Driver"] = field(default_factory=dict)
    started: int = 0
    _clean: dict[Any, list[str]] = field(default_factory=dict)

    def source(self, name: str, *, files: int, feed: bool = False, first: int = 0) -> str:
        """Make a table of texts, if it is not there; some are bad.

        It has one commit and one file for each 30 keys.
        """
        path = str(self.folder / name)
        for nth in range(0 if Path(path).exists() else files):
            begin = first + nth * ROWS_PER_FILE
            self.add(path, begin, begin + ROWS_PER_FILE, feed=feed)
        return path

    def add(self, path: str, begin: int, end: int, *, feed: bool = False) -> None:
        """Append rows to a table, as one file."""
        rows = self.spark.range(begin, end, 1, 1).selectExpr(
            "id",
            "CASE WHEN id % 11 = 3 THEN NULL WHEN id % 11 = 7 THEN ' ' "
            "ELSE concat('Text ', repeat('x', CAST(id % 17 AS int)), id) END AS text",
            "id % 5 AS other",
        )
        writer = rows.write.format("delta").mode("append")
        writer.option("delta.enableChangeDataFeed", str(feed).lower()).save(path)

    def settings(self, table: str, target: str, /, **groups: Any) -> dict[str, Any]:
        """Return a job's settings; `groups` add to those of source, target and limits."""
        made: dict[str, Any] = {
            "source": {"table": table, "key": "id", "partitions": 2, "max_files": 1},
            "target": {"table": str(self.folder / target)},
            "tasks": {task: {"model": model} for task, model in self.models.items()},
            # A name, or MLflow would look for the experiment that the caller's environment has.
            "mlflow": {
                "tracking_uri": f"sqlite:///{self.folder}/mlflow.db",
                "experiment": "faults",
            },
        }
        for name, values in groups.items():
            made[name] = made.get(name, {}) | values
        return made

    def run(self, settings: dict[str, Any], *, command: str = "score") -> RunSummary:
        """Run a job in the warm session."""
        config = JobConfig.parse(settings)
        now = datetime.now(UTC)
        return RUNS[command](self.spark, config, now=now)

    def rows(self, df: "DataFrame") -> list[str]:
        """Return the rows of a scored frame as sorted text, without what each run has its own."""
        kept = sorted(set(df.columns) - {"run_id", "scored_at"})
        return sorted(
            row[0] for row in df.selectExpr(f"to_json(struct({', '.join(kept)}))").collect()
        )

    def expected(self, settings: dict[str, Any]) -> list[str]:
        """Return the rows that a clean scoring of a job's source, as it is now, makes."""
        config = JobConfig.parse(settings)
        source = config.source.table
        assert source is not None
        at = (source, version(self.spark, source), str(config.tasks))
        if at not in self._clean:
            scored = score(load(self.spark, source), config)
            self._clean[at] = self.rows(scored.selectExpr("*", "xxhash64(text) AS text_hash"))
        return self._clean[at]

    def target(self, settings: dict[str, Any], *, version: int | None = None) -> "DataFrame":
        """Return a job's target, now or as it was at a version."""
        return load(self.spark, settings["target"]["table"], version=version)

    def holds(self, settings: dict[str, Any]) -> bool:
        """Tell whether the target equals a clean scoring of its source: none lost, none double."""
        found, expected = self.rows(self.target(settings)), self.expected(settings)
        lost, more = set(expected) - set(found), set(found) - set(expected)
        return said(
            found == expected,
            f"{settings['target']['table']}: {len(found)} rows for {len(expected)}; "
            f"lost {sorted(lost)[:2]}, more {sorted(more)[:2]}",
        )

    def rests(self, settings: dict[str, Any], *, command: str = "score") -> bool:
        """Run a job for which nothing is left to do, and tell whether it did nothing."""
        target = settings["target"]["table"]
        before = version(self.spark, target)
        self.scored.clear()
        rows_in = self.run(settings, command=command).rows_in
        done = (rows_in, self.scored.rows, version(self.spark, target) - before)
        return said(done == (0, 0, 0), f"{target}: rows in, scored, versions of a rest: {done}")

    def count(self, rows: "DataFrame") -> Count:
        """Count rows of a target by their own columns, whatever runs say of them."""
        found = dict(rows.groupBy("error.code").count().collect())
        return Count(found.pop(None, 0), found)

    def billed(self, settings: dict[str, Any]) -> dict[str, Count]:
        """Return what the bills of a target's finished runs say, by run; each adds up in itself."""
        bills = load(self.spark, settings["target"]["table"] + "_runs")
        bills = bills.where("status = 'finished'")
        found = {}
        for row in bills.collect():
            count = found[row.run_id] = Count(row.rows_scored, row.rows_failed)
            assert count.rows == row.rows_in, row
        assert len(found) == bills.count(), "a run has two bills"
        return found

    def driver(
        self, nth: int = 0, *, master: str = "local[2,4]", stub: bool = True, **env: str
    ) -> "Driver":
        """Return the nth driver process of its kind: one that is idle, or a new one."""
        kind = (master, stub, *sorted(env.items()), nth)
        known = self.drivers.get(kind)
        if known is not None and known.is_alive:
            return known
        if known is not None:
            known.kill()  # what its process has left
        self.drivers[kind] = self._new_driver(master, stub, env)
        return self.drivers[kind]

    def _new_driver(self, master: str, stub: bool, env: Mapping[str, str]) -> "Driver":
        self.started += 1
        log = self.folder / f"driver-{self.started}.spark.log"
        record = Record(log.with_suffix(".record"))
        local = log.with_suffix(LOCAL)
        paths = [*([str(STUB)] if stub else []), str(ROOT / "lib"), str(ROOT)]
        with log.with_suffix(".stderr").open("ab") as stderr:
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("driver.py")), master, str(log)],
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(paths)}
                | {"LAKESCORE_STUB_RECORD": str(record.folder)}
                | {"SPARK_LOCAL_DIRS": str(local)}
                | env,
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,  # its JVM dies with it
            )
        driver = Driver(process, record, log, local)
        if driver.answer() != "ready":
            raise AssertionError(f"a driver did not start; see {log}")
        return driver

    def close(self) -> None:
        """Kill all drivers."""
        for driver in self.drivers.values():
            driver.kill()
        self.drivers.clear()

    def forget(self, settings: dict[str, Any]) -> None:
        """Remove a target and all that belongs to it."""
        for suffix in ("", "_runs", "_checkpoint"):
            shutil.rmtree(settings["target"]["table"] + suffix, ignore_errors=True)


class Driver:
    """A driver process that runs jobs, until it is killed."""

    def __init__(
        self, process: "subprocess.Popen[str]", scored: Record, log: Path, local: Path
    ) -> None:
        self.process = process
        self.scored = scored
        self.log = log
        self.local = local  # where its Spark keeps files, which a killed one leaves behind

    @property
    def is_alive(self) -> bool:
        """Tell whether it can run another job."""
        return self.process.poll() is None

    def start(
        self,
        settings: Any,
        *,
        command: str = "score",
        unlocked: bool = False,
        failpoint: str = "",
    ) -> None:
        """Let it begin a run, or several at once.

        With `unlocked` folders are as on a store; `failpoint` is as LAKESCORE_FAILPOINT.
        """
        assert self.process.stdin is not None
        told = {"command": command, "settings": settings}
        how = {"unlocked": unlocked, "failpoint": failpoint}
        self.process.stdin.write(json.dumps(told | how) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """Wait for its answer, for some minutes."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], ANSWER_SECONDS)[0]:
            self.kill()
            return {"error": "late", "message": f"no answer in {ANSWER_SECONDS} s"}
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.process.wait()  # or the next to ask would take it for alive
        return {"error": "died", "message": "it was killed"}

    def run(self, settings: Any, *, command: str = "score", failpoint: str = "") -> Any:
        """Let it do a run, or several at once, and wait for its answer."""
        self.start(settings, command=command, failpoint=failpoint)
        return self.answer()

    def was_killed(self) -> bool:
        """Wait until it has died or ended its run, and tell whether SIGKILL was the reason."""
        said = self.answer()
        return said.get("error") == "died" and self.process.returncode == -signal.SIGKILL

    def kill(self) -> None:
        """Kill it with its JVM, wait until both are gone, and remove what its Spark has left."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        shutil.rmtree(self.local, ignore_errors=True)

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until something is so, or the run that is at work has ended."""
        until = time.monotonic() + WAIT_SECONDS
        while not ready() and not select.select([self.process.stdout], [], [], 0.05)[0]:
            if time.monotonic() > until:
                raise AssertionError(f"nothing happened in {WAIT_SECONDS} s")


def ancestor(process: int, sign: str) -> int:
    """Return the nearest process above one whose command line holds `sign`."""
    for above in psutil.Process(process).parents():
        if sign in " ".join(above.cmdline()):
            return int(above.pid)
    raise psutil.NoSuchProcess(process, msg=f"none above it has {sign} on its command line")


def said(held: bool, otherwise: str) -> bool:
    """Return whether something held, having said what is wrong where it did not."""
    if not held:
        print(otherwise, file=sys.stderr)
    return held
