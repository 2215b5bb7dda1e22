"""What reading and writing tables costs: the job with a model that costs nothing.

    make bench-tables [ARGS="--rows 10000 100000 1000000"]

For each number of rows: rows/s of a run that appends them all, the driver's memory after it, and
the seconds of a run that finds nothing new. Then a run that merges 10,000 changed rows, spread over
the whole target, for the two largest targets. The stub in tests/faults/stub stands in for models.
"""

import argparse
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from corpus import ENTITIES, ROOT, SENTIMENT, print_json, print_table
from memory import memory

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


def main() -> None:
    """Measure, print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    counts = sorted(parser.parse_args().rows)
    appended: dict[int, float] = {}
    driver: dict[int, float] = {}
    idle: dict[int, float] = {}
    merged: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {"spark.sql.warehouse.dir": str(folder / "warehouse")}
        with local_session(
            master="local[2,4]", settings=settings, log_file=folder / "spark.log"
        ) as spark:
            run(spark, config(folder, "warm", make_source(spark, folder, 1_000)))
            for rows in counts:
                job = config(folder, f"append_{rows}", make_source(spark, folder, rows))
                appended[rows] = rows / run(spark, job, expected=rows)
                time.sleep(THREADS_END)
                driver[rows] = memory(spark)["driver"]
                idle[rows] = median(run(spark, job) for _ in range(IDLE_RUNS))
            for rows in counts[-2:]:
                merged[rows] = merge(spark, folder, rows)
    print_table(
        "The job with a model that costs nothing, local[2]",
        ["rows of the target", "appended rows/s", "driver MiB", "idle run s", "merge of 10,000 s"],
        [
            [rows, appended[rows], driver[rows], idle[rows], merged.get(rows, "-")]
            for rows in counts
        ],
    )
    first, last = counts[-2:] if len(counts) > 1 else (counts[0], counts[0])
    print_json(
        {
            "append_rows_per_s": appended,
            "driver_mib": driver,
            "merge_seconds": merged,
            "merge_ratio": merged[last] / merged[first],
            "idle_run_seconds": idle,
        }
    )


def make_source(spark: "SparkSession", folder: Path, rows: int, *, feed: bool = False) -> str:
    """Make a table of `rows` texts of about 100 characters, with a change feed if wanted."""
    path = str(folder / f"source_{rows}_{feed}")
    text = "concat('Message ', id, ' of ', sha2(string(id), 256), ' was late again')"
    frame = spark.range(0, rows, 1, -(-rows // ROWS_PER_FILE)).selectExpr("id", f"{text} AS text")
    writer = frame.write.format("delta")
    writer.option("delta.enableChangeDataFeed", str(feed).lower()).save(path)
    return path


def config(folder: Path, target: str, source: str, changes: str = "append") -> Any:
    """Return a job between two tables."""
    return lakescore.JobConfig.parse(
        {
            "source": {"table": source, "key": "id", "changes": changes, "max_bytes": 16 * 2**20},
            "target": {"table": str(folder / target)},
            "tasks": {"entities": {"model": ENTITIES}, "sentiment": {"model": SENTIMENT}},
            "mlflow": {"tracking_uri": f"sqlite:///{folder}/mlflow.db"},
        }
    )


def run(spark: "SparkSession", job: Any, *, expected: int | None = None) -> float:
    """Run a job, check how many rows it read, and return the seconds that it took."""
    began = time.perf_counter()
    summary = lakescore.score_table(
        spark, job, now=datetime.now(UTC), progress=lambda done, total: None
    )
    seconds = time.perf_counter() - began
    if expected is not None and summary.rows_in != expected:
        raise AssertionError(f"{summary.rows_in} rows were read, not {expected}")
    return seconds


def merge(spark: "SparkSession", folder: Path, rows: int) -> float:
    """Return the seconds of a run that merges 10,000 changed rows into a target of `rows`."""
    source = make_source(spark, folder, rows, feed=True)
    job = config(folder, f"merge_{rows}", source, changes="cdf")
    run(spark, job, expected=rows)
    step = max(rows // MERGED, 1)
    spark.sql(f"UPDATE delta.`{source}` SET text = concat('New ', text) WHERE id % {step} = 0")
    return run(spark, job, expected=len(range(0, rows, step)))


if __name__ == "__main__":
    main()
