"""What reading and writing tables costs: the job with a model that costs nothing.

    make bench-tables [ARGS="--rows 10000 100000 1000000"]

For each number of rows, after a run of the smallest number that is not timed: rows/s of a run that
appends them all, the driver's memory in it, at its end and a minute later, and the seconds of a run
that finds nothing new. Then a run that merges 10,000 changed rows, spread over the whole target,
for the two largest targets, and of it the MERGE alone, by what Delta says of its time. The stub in
tests/faults/stub stands in for models.

A run has a fixed cost of some seconds, behind which a rate that falls would not show. So there is
also the rate of the micro-batches alone, by the times of their commits: of all after the first one,
and of the two halves of them. The driver's memory is read every few seconds of a run, too, as
benchmarks/memory.py reads it, which collects the JVM's garbage and so costs a little of the rate.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from corpus import ENTITIES, ROOT, SENTIMENT, print_json, print_table
from memory import memory, resident_mib

STUB = str(ROOT / "tests/faults/stub")
os.environ["PYTHONPATH"] = os.pathsep.join([STUB, str(ROOT), str(ROOT / "lib")])
sys.path.insert(0, STUB)

import sitecustomize  # noqa: E402, F401  # puts the stub in place of the models

import lakescore  # noqa: E402
from lakescore.session import local_session  # noqa: E402

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MERGED = 10_000
ROWS_PER_FILE = 50_000
IDLE_RUNS = 3
# Task threads live in the driver's JVM here, and keep the 64 MiB page in which they sorted until
# they end, idle for a minute.
THREADS_END = 65
SAMPLE_SECONDS = 5
MAX_BYTES = 8 * 2**20
# A rate that is lower than this share of another one has fallen.
HELD = 0.9


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The seconds of a run that merges, and those of its MERGE alone."""

    run: float
    alone: float


@dataclass(frozen=True, kw_only=True)
class Appended:
    """What a run that appends showed.

    Attributes:
        rate: rows/s of the whole run.
        steady: rows/s from the first commit to the last; None of one micro-batch.
        halves: rows/s of its first and its second half; None of fewer than three micro-batches.
        during: the driver's memory in the run and at its end, in MiB; `resident` is that of its
            two processes with what the JVM has taken and not given back.
        after: the driver's memory once Spark's task threads have ended.
        idle: the seconds of a run after it, which finds nothing.
    """

    rate: float
    steady: float | None
    halves: tuple[float, float] | None
    during: list[dict[str, float]]
    after: float
    idle: float

    @property
    def alone(self) -> list[float | str]:
        """The rates of micro-batches, or dashes."""
        return [self.steady or "-", *(self.halves or ("-", "-"))]

    def read(self, name: str) -> tuple[float, float]:
        """Return the most that a figure was during the run, and what it was at its end."""
        return max(each[name] for each in self.during), self.during[-1][name]

    @property
    def driver_halves(self) -> tuple[float, float] | None:
        """The driver's memory in the two halves of the run, by medians; None of few readings."""
        read = [each["driver"] for each in self.during]
        middle = len(read) // 2
        return (median(read[:middle]), median(read[middle:])) if middle > 1 else None


def main() -> None:
    """Measure, print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--max-bytes", type=int, default=MAX_BYTES, help="of a micro-batch")
    arguments = parser.parse_args()
    counts, max_bytes = sorted(arguments.rows), arguments.max_bytes
    appended: dict[int, Appended] = {}
    merged: dict[int, Merged] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {"spark.sql.warehouse.dir": str(folder / "warehouse")}
        with local_session(
            master="local[2,4]", settings=settings, log_file=folder / "spark.log"
        ) as spark:
            # A JVM that is cold takes longer, and holds more for a while.
            warm = make_source(spark, folder, counts[0])
            run(spark, config(folder, "warm", warm, max_bytes=max_bytes))
            for rows in counts:
                appended[rows] = append(spark, folder, rows, max_bytes)
            for rows in counts[-2:]:
                merged[rows] = merge(spark, folder, rows, max_bytes)
    show(appended, merged)


def show(appended: dict[int, Appended], merged: dict[int, Merged]) -> None:
    """Print the tables, what is to be said of them, and the line of JSON."""
    whole = ["rows of the target", "appended rows/s", "idle run s"]
    alone = ["micro-batches alone rows/s", "first half", "last half"]
    print_table(
        "The job with a model that costs nothing, local[2]",
        [*whole, *alone],
        [[rows, each.rate, each.idle, *each.alone] for rows, each in appended.items()],
    )
    print_table(
        f"A merge of {MERGED:,} rows, s",
        ["rows of the target", "the run", "its MERGE alone"],
        [[rows, each.run, each.alone] for rows, each in merged.items()],
    )
    held = ["peak", "at the end", "a minute later"]
    resident = ["peak resident", "at the end"]
    print_table(
        "The driver's memory, MiB: Python and its JVM's heap after a collection, or all resident",
        ["rows appended", *held, *resident],
        [
            [rows, *each.read("driver"), each.after, *each.read("resident")]
            for rows, each in appended.items()
        ],
    )
    print("\n".join(verdicts(appended)))
    counts = list(appended)
    first, last = counts[-2:] if len(counts) > 1 else (counts[0], counts[0])
    print_json(
        {
            "append_rows_per_s": {rows: each.rate for rows, each in appended.items()},
            "micro_batch_rows_per_s": {rows: each.steady for rows, each in appended.items()},
            "halves_rows_per_s": {rows: each.halves for rows, each in appended.items()},
            "driver_mib": {rows: each.read("driver")[1] for rows, each in appended.items()},
            "driver_halves_mib": {rows: each.driver_halves for rows, each in appended.items()},
            "driver_peak_mib": {rows: each.read("driver")[0] for rows, each in appended.items()},
            "driver_later_mib": {rows: each.after for rows, each in appended.items()},
            "resident_peak_mib": {
                rows: each.read("resident")[0] for rows, each in appended.items()
            },
            "merge_seconds": {rows: each.run for rows, each in merged.items()},
            "merge_ratio": merged[last].run / merged[first].run,
            "merge_alone_seconds": {rows: each.alone for rows, each in merged.items()},
            "merge_alone_ratio": merged[last].alone / merged[first].alone,
            "idle_run_seconds": {rows: each.idle for rows, each in appended.items()},
        }
    )


def verdicts(appended: dict[int, Appended]) -> list[str]:
    """Say whether rates fell by more than a tenth, and how the driver's memory grew."""
    few, many = min(appended), max(appended)
    fell = appended[many].rate < max(each.rate for each in appended.values()) * HELD
    lines = [f"rows/s from {few:,} to {many:,} rows: {_judged(fell)}, by whole runs"]
    if (halves := appended[many].halves) is None:
        lines.append(f"within {many:,} rows: too few micro-batches to tell")
    else:
        of = f"the last half at {halves[1] / halves[0]:.2f} of the first"
        lines.append(f"within {many:,} rows: {_judged(halves[1] < halves[0] * HELD)}, {of}")
    if driver := appended[many].driver_halves:
        of = f"the last half at {driver[1] / driver[0]:.2f} of the first"
        lines.append(f"the driver's memory within {many:,} rows: {of}")
    for when, nth in (("peak", 0), ("memory at the end", 1)):
        grew = appended[many].read("driver")[nth] / appended[few].read("driver")[nth] - 1
        lines.append(f"the driver's {when} with {many:,} rows: {grew:+.0%} of that with {few:,}")
    return lines


def _judged(fell: bool) -> str:
    return f"{'FELL' if fell else 'did not fall'} by more than {1 - HELD:.0%}"


def append(spark: "SparkSession", folder: Path, rows: int, max_bytes: int) -> Appended:
    """Run a job that appends `rows` rows to a new target, and runs that find nothing after it."""
    source = make_source(spark, folder, rows)
    job = config(folder, f"append_{rows}", source, max_bytes=max_bytes)
    with sampled(spark) as during:
        seconds = run(spark, job, expected=rows)
    time.sleep(THREADS_END)
    after = memory(spark)["driver"]
    done = commits(spark, job.target.table)
    middle = len(done) // 2
    return Appended(
        rate=rows / seconds,
        steady=rate(done) if len(done) > 1 else None,
        halves=(rate(done[: middle + 1]), rate(done[middle:])) if middle and done[2:] else None,
        during=during,
        after=after,
        idle=median(run(spark, job, expected=0) for _ in range(IDLE_RUNS)),
    )


def commits(spark: "SparkSession", target: str) -> list[tuple[float, int]]:
    """Return the second at which each micro-batch was committed, and its rows, in their order."""
    history = spark.sql(f"DESCRIBE HISTORY delta.`{target}`").where("operation = 'WRITE'")
    return [
        (row.timestamp.timestamp(), int(row.operationMetrics["numOutputRows"]))
        for row in history.orderBy("version").collect()
    ]


def rate(done: list[tuple[float, int]]) -> float:
    """Return the rows/s of commits after the first one: what came before it is not their work."""
    return sum(rows for _, rows in done[1:]) / (done[-1][0] - done[0][0])


@contextmanager
def sampled(spark: "SparkSession") -> Iterator[list[dict[str, float]]]:
    """Read the driver's memory every few seconds and at the end, while something runs."""
    readings: list[dict[str, float]] = []
    is_done = threading.Event()
    process = int(spark.sparkContext._jvm.java.lang.ProcessHandle.current().pid())

    def read() -> None:
        # First: to read the heap is to have it collected.
        resident = resident_mib(os.getpid()) + resident_mib(process)
        readings.append(memory(spark) | {"resident": resident})

    def sample() -> None:
        while not is_done.wait(SAMPLE_SECONDS):
            read()

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield readings
    finally:
        is_done.set()
        thread.join()
    read()


def make_source(spark: "SparkSession", folder: Path, rows: int, *, feed: bool = False) -> str:
    """Make a table of `rows` texts of about 100 characters, with a change feed if wanted."""
    path = str(folder / f"source_{rows}_{feed}")
    if Path(path).exists():  # that of the run which warms the JVM
        return path
    text = "concat('Message ', id, ' of ', sha2(string(id), 256), ' was late again')"
    frame = spark.range(0, rows, 1, -(-rows // ROWS_PER_FILE)).selectExpr("id", f"{text} AS text")
    writer = frame.write.format("delta")
    writer.option("delta.enableChangeDataFeed", str(feed).lower()).save(path)
    return path


def config(
    folder: Path, target: str, source: str, *, max_bytes: int, changes: str = "append"
) -> Any:
    """Return a job between two tables."""
    return lakescore.JobConfig.parse(
        {
            "source": {"table": source, "key": "id", "changes": changes, "max_bytes": max_bytes},
            "target": {"table": str(folder / target)},
            "tasks": {"entities": {"model": ENTITIES}, "sentiment": {"model": SENTIMENT}},
            "mlflow": {"tracking_uri": f"sqlite:///{folder}/mlflow.db"},
        }
    )


def run(spark: "SparkSession", job: Any, *, expected: int | None = None) -> float:
    """Run a job, check how many rows it read, and return the seconds that it took."""
    began = time.perf_counter()
    summary = lakescore.score_table(spark, job, now=datetime.now(UTC))
    seconds = time.perf_counter() - began
    if expected is not None and summary.rows_in != expected:
        raise AssertionError(f"{summary.rows_in} rows were read, not {expected}")
    return seconds


def merge(spark: "SparkSession", folder: Path, rows: int, max_bytes: int) -> Merged:
    """Let a run merge 10,000 changed rows into a target of `rows`."""
    source = make_source(spark, folder, rows, feed=True)
    job = config(folder, f"merge_{rows}", source, max_bytes=max_bytes, changes="cdf")
    run(spark, job, expected=rows)
    step = max(rows // MERGED, 1)
    spark.sql(f"UPDATE delta.`{source}` SET text = concat('New ', text) WHERE id % {step} = 0")
    seconds = run(spark, job, expected=len(range(0, rows, step)))
    history = spark.sql(f"DESCRIBE HISTORY delta.`{job.target.table}`")
    merges = history.where("operation = 'MERGE'").orderBy(history.version.desc())
    metrics = merges.select("operationMetrics").head()[0]
    return Merged(run=seconds, alone=int(metrics["executionTimeMs"]) / 1000)


if __name__ == "__main__":
    main()
