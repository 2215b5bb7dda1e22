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
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakescore import JobConfig, RunSummary, score, score_table
from lakescore.tables import load, version

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).with_name("stub")
ROWS_PER_FILE = 30
WAIT_SECONDS = 120
ANSWER_SECONDS = 600


@dataclass
class Lab:
    """A warm session with the stub model, a folder for everything, and the fate of this run."""

    spark: "SparkSession"
    folder: Path
    models: Mapping[str, str]
    rng: random.Random
    drivers: dict[Any, "Driver"] = field(default_factory=dict)
    started: int = 0
    _clean: dict[Any, list[str]] = field(default_factory=dict)

    def source(self, name: str, *, files: int, feed: bool = False, first: int = 0) -> str:
        """Make a table of texts, one commit and one file for each 30 keys; some are bad."""
        path = str(self.folder / name)
        for nth in range(files):
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

    def run(self, settings: dict[str, Any]) -> RunSummary:
        """Run a job in the warm session."""
        config = JobConfig.parse(settings)
        now = datetime.now(UTC)
        return score_table(self.spark, config, now=now, progress=lambda done, total: None)

    def rows(self, df: Any) -> list[str]:
        """Return the rows of a scored frame as sorted text, without what each run has its own."""
        kept = [name for name in df.columns if name not in ("run_id", "scored_at", "text_hash")]
        return sorted(
            row[0] for row in df.selectExpr(f"to_json(struct({', '.join(kept)}))").collect()
        )

    def holds(self, settings: dict[str, Any]) -> bool:
        """Tell whether the target equals a clean scoring of its source: none lost, none double."""
        config = JobConfig.parse(settings)
        source, target = config.source.table, config.target.table
        assert source is not None and target is not None
        at = (source, version(self.spark, source))
        if at not in self._clean:
            self._clean[at] = self.rows(score(load(self.spark, source), config))
        found, expected = self.rows(load(self.spark, target)), self._clean[at]
        if found != expected:
            lost, more = set(expected) - set(found), set(found) - set(expected)
            print(
                f"{target}: {len(found)} rows for {len(expected)}; lost {sorted(lost)[:2]}, "
                f"more {sorted(more)[:2]}",
                file=sys.stderr,
            )
        return found == expected

    def recovers(self, settings: dict[str, Any]) -> bool:
        """Run a job again after a fault: the oracle holds then, and one more run adds nothing."""
        self.run(settings)
        if not self.holds(settings):
            return False
        target = settings["target"]["table"]
        before = version(self.spark, target)
        return self.run(settings).rows_in == 0 and version(self.spark, target) == before

    def driver(
        self, nth: int = 0, *, master: str = "local[2,4]", stub: bool = True, **env: str
    ) -> "Driver":
        """Return the nth driver process of its kind: one that is idle, or a new one."""
        kind = (master, stub, *sorted(env.items()), nth)
        if kind not in self.drivers or not self.drivers[kind].is_alive:
            self.drivers[kind] = self._new_driver(master, stub, env)
        return self.drivers[kind]

    def _new_driver(self, master: str, stub: bool, env: Mapping[str, str]) -> "Driver":
        self.started += 1
        log = self.folder / f"driver-{self.started}.spark.log"
        paths = [*([str(STUB)] if stub else []), str(ROOT / "lib"), str(ROOT)]
        with log.with_suffix(".stderr").open("ab") as stderr:
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("driver.py")), master, str(log)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | env,
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,  # its JVM dies with it
            )
        driver = Driver(process)
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

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    @property
    def is_alive(self) -> bool:
        """Tell whether it can run another job."""
        return self.process.poll() is None

    def start(
        self, settings: dict[str, Any], *, command: str = "score", unlocked: bool = False
    ) -> None:
        """Let it begin a run; `unlocked`, as if its folders were on an object store."""
        assert self.process.stdin is not None
        message = {"command": command, "settings": settings, "unlocked": unlocked}
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """Wait for its answer, for some minutes."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], ANSWER_SECONDS)[0]:
            self.kill()
            return {"error": "late", "message": f"no answer in {ANSWER_SECONDS} s"}
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": "died", "message": "it was killed"}

    def run(self, settings: dict[str, Any], *, command: str = "score") -> Any:
        """Let it do a run, and wait for its answer."""
        self.start(settings, command=command)
        return self.answer()

    def was_killed(self) -> bool:
        """Wait until it has died, for some minutes, and tell whether SIGKILL was the reason."""
        try:
            return self.process.wait(ANSWER_SECONDS) == -signal.SIGKILL
        except subprocess.TimeoutExpired:
            self.kill()
            return False

    def kill(self) -> None:
        """Kill it with its JVM, and wait until both are gone."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def descendants(self, sign: str) -> list[int]:
        """Return its descendants whose command line holds `sign`, those of the same kind last."""
        parents: dict[int, int] = {}
        commands: dict[int, bytes] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                status = (folder / "stat").read_text()
                commands[int(folder.name)] = (folder / "cmdline").read_bytes()
            except OSError:
                continue  # it has ended meanwhile
            parents[int(folder.name)] = int(status.rpartition(")")[2].split()[1])

        def is_ours(process: int) -> bool:
            while process > 1:
                if process == self.process.pid:
                    return True
                process = parents.get(process, 0)
            return False

        return [each for each in commands if sign.encode() in commands[each] and is_ours(each)]

    def workers(self) -> list[int]:
        """Return its Python workers, which pyspark.daemon has forked."""
        daemons = set(self.descendants("pyspark.daemon"))
        parent = {each: _parent(each) for each in daemons}
        return [each for each in daemons if parent[each] in daemons]

    def wait_for_workers(self) -> list[int]:
        """Return its Python workers as soon as there are some."""
        until = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < until:
            if found := self.workers():
                return found
            if select.select([self.process.stdout], [], [], 0.05)[0]:
                raise AssertionError(f"the job ended before it had workers: {self.answer()}")
        raise AssertionError(f"no Python worker was there in {WAIT_SECONDS} s")


def _parent(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return 0
    return int(status.rpartition(")")[2].split()[1])
