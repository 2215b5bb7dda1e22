"""Memory of the driver and of a worker while the whole job scores many rows.

    make bench-memory [ARGS="--rows 200000"]

The driver's figure is its Python process (resident) plus what its JVM's heap holds after a
collection: a JVM takes what it is allowed, so its resident size says nothing. The worker's is the
largest resident size of any Python worker.
"""

import argparse
import gc
import os
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from corpus import ENTITIES, SENTIMENT, load_texts, print_json, print_table

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MIB = 2**20
# Texts are cut, so that 200,000 rows take minutes and not an hour.
CHARACTERS = 60
# Shares of all rows at which memory is read: the first is the warm-up.
SHARES = (0.01, 0.1, 0.25, 0.5, 0.75, 1.0)


def main() -> None:
    """Measure, print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    rows = parser.parse_args().rows
    corpus, texts = load_texts(20_000)
    readings = measure([text[:CHARACTERS] for text in texts], rows)
    print_table(
        f"{rows:,} rows of {corpus}, cut to {CHARACTERS} characters, both tasks, local[2]",
        ["rows done", "driver MiB", "of it JVM heap", "worker MiB"],
        [[each["rows"], each["driver"], each["heap"], each["worker"]] for each in readings],
    )
    ten, full = readings[SHARES.index(0.1)], readings[-1]
    print_json(
        {
            "rows": rows,
            "driver_mib": {"10%": ten["driver"], "100%": full["driver"]},
            "worker_mib": {"10%": ten["worker"], "100%": full["worker"]},
            "driver_growth": full["driver"] / ten["driver"] - 1,
            "worker_growth": full["worker"] / ten["worker"] - 1,
        }
    )


def measure(texts: list[str], rows: int) -> list[dict[str, float]]:
    """Run the job over `rows` rows and read the memory at each of `SHARES`."""
    from pyspark.sql import functions as F

    import lakescore
    from lakescore.session import local_session

    readings: list[dict[str, float]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        local_session(master="local[2]", log_file=Path(folder) / "spark.log") as spark,
    ):
        source, target = f"{folder}/source", f"{folder}/target"
        few = spark.createDataFrame(list(enumerate(texts)), "n long, text string")
        many = spark.range(rows).withColumn("n", F.col("id") % len(texts)).join(few, "n")
        many.select("id", "text").repartition(100).write.format("delta").save(source)

        def read(done: int, total: int) -> None:
            wanted = SHARES[min(len(readings), len(SHARES) - 1)]
            if len(readings) < len(SHARES) and total and done >= wanted * total:
                readings.append({"rows": done} | memory(spark))

        config = lakescore.JobConfig.parse(
            {
                # One file a micro-batch: a hundred of them.
                "source": {"table": source, "key": "id", "max_bytes": 1, "partitions": 8},
                "target": {"table": target},
                "tasks": {"entities": {"model": ENTITIES}, "sentiment": {"model": SENTIMENT}},
                "encoding": {"dtype": "auto"},
                "mlflow": {"tracking_uri": f"sqlite:///{folder}/mlflow.db"},
            }
        )
        began = time.perf_counter()
        summary = lakescore.score_table(spark, config, now=datetime.now(UTC), progress=read)
        print(f"{summary.rows_in:,} rows in {time.perf_counter() - began:,.0f} s")
    return readings


def memory(spark: "SparkSession") -> dict[str, float]:
    """Return what the driver and the largest Python worker hold, in MiB."""
    gc.collect()
    runtime: Any = spark.sparkContext._jvm.java.lang.Runtime.getRuntime()
    runtime.gc()
    heap = (runtime.totalMemory() - runtime.freeMemory()) / MIB
    driver = resident_mib(os.getpid())
    return {"driver": driver + heap, "heap": heap, "worker": max(map(resident_mib, workers()))}


def workers() -> list[int]:
    """Return the process ids of this program's Python workers, and of the daemon they come from."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if "pyspark.daemon" in process.cmdline():
                found.append(process.pid)
    return found


def resident_mib(process: int) -> float:
    """Return a process's resident memory in MiB; 0 if it has ended."""
    try:
        return float(psutil.Process(process).memory_info().rss) / MIB
    except psutil.NoSuchProcess:
        return 0.0


if __name__ == "__main__":
    main()
