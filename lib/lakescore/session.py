"""A local Spark with Delta, for laptops and tests; on Databricks `spark` is already there."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lakescore.distribute import own_folder
from lakescore.errors import SetupError
from lakescore.java import find_java
from lakescore.locks import locked

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DELTA_SETTINGS = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
# For a laptop: no web page, no cluster's number of shuffle partitions, one place for tables.
LAPTOP_SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "4",
    # VACUUM lists files by as many tasks; ten thousand of them take half a minute here.
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "4",
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "2g",
    # What the web page would show of the past: there is none, and a long job has much of it.
    "spark.ui.retainedJobs": "20",
    "spark.ui.retainedStages": "20",
    "spark.ui.retainedTasks": "200",
    "spark.sql.ui.retainedExecutions": "20",
    "spark.sql.session.timeZone": "UTC",
    # As on Databricks, so that pandas gets arrays, not lists, here, too.
    "spark.sql.execution.arrow.pyspark.enabled": "true",
}


@contextmanager
def local_session(
    app_name: str = "lakescore",
    *,
    master: str = "local[*,4]",
    settings: Mapping[str, str] | None = None,
    log_file: Path = Path("spark.log"),
) -> Iterator["SparkSession"]:
    """Start a Spark with Delta in this process, and stop it at the end.

    The first start fetches Delta's jars by their Maven coordinates. What the JVM and the Python
    workers print goes to `log_file`.

    Raises:
        SetupError: pyspark or delta-spark is missing, no Java is found, or the jars cannot be had.
    """
    try:
        from delta import configure_spark_with_delta_pip
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise SetupError(
            f"{error.name} is not installed; for a Spark on this machine: "
            "pip install 'lakescore[local]'"
        ) from error
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if (java := find_java()) is not None:  # JAVA_HOME's own, if that one fits
        os.environ["JAVA_HOME"] = str(java.home)
    builder = SparkSession.builder.appName(app_name).master(master)
    for key, value in {**LAPTOP_SETTINGS, **DELTA_SETTINGS, **(settings or {})}.items():
        builder = builder.config(key, value)
    try:
        # Two processes that fetch the same jars at once disturb each other.
        alone = locked(str(own_folder() / ".session.lock"), wait=True, is_file=True)
        with alone, _output_to(log_file):
            spark = configure_spark_with_delta_pip(builder).getOrCreate()
        # Spark has put Delta's jars there, whose lists of files every look for a package reads:
        # MLflow alone looks so often that it takes a second, and a worker looks at each task.
        for paths in (sys.path, spark.sparkContext._python_includes or []):
            paths[:] = [path for path in paths if not path.endswith(".jar")]
    except (PySparkException, OSError) as error:
        raise SetupError(
            f"Spark did not start: see {log_file}, and `lakescore doctor` for what is missing"
        ) from error
    try:
        yield spark
    finally:
        spark.stop()


@contextmanager
def _output_to(log_file: Path) -> Iterator[None]:
    """Start processes whose output goes to `log_file`: Ivy's, Spark's and Python workers' noise."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    try:
        with log_file.open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        yield
    finally:
        for number, saved in enumerate(kept, start=1):
            os.dup2(saved, number)
            os.close(saved)
