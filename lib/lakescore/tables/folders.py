"""Folders and files beside tables: of checkpoints, of what is put aside; seen, read and removed."""

import logging
import os
import re
import shutil
import uuid
from typing import TYPE_CHECKING, Any

from lakescore.distribute import is_connect
from lakescore.errors import TableError, root_cause
from lakescore.tables.source import WRONG_SUM, damaged

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

# Databricks shows Volumes as folders, and refuses them to calls of Hadoop's file systems.
VOLUMES = "/Volumes/"


def check_seen(spark: "SparkSession", folder: str) -> None:
    """See that what Spark writes into a folder can be found and removed again.

    With Connect, which has no JVM to ask, it is to be a folder of this process's machine, too, as
    those of Volumes are on Databricks.

    Raises:
        TableError: it is elsewhere, or cannot be written.
    """
    if not is_connect(spark):
        return
    seen = f"{folder}/seen-{uuid.uuid4().hex}"
    try:
        spark.range(0).write.parquet(seen)
    except Exception as error:  # Connect's own
        raise TableError(
            f"{folder}: cannot be written ({root_cause(error)}); name a folder that can"
        ) from error
    if not is_folder(spark, seen):
        raise TableError(
            f"{folder}: is not on the machine of this process, so that on Spark Connect it could "
            "not remove the texts that a run puts there; let target.checkpoint be a folder of a "
            f"Volume ({VOLUMES}…) and run the job on Databricks, or run it in dedicated access mode"
        )
    remove(spark, seen)


def lines(spark: "SparkSession", path: str) -> list[str] | None:
    """Read a file of a checkpoint, or a folder's; None where there is none.

    Raises:
        TableError: it is damaged, by the sum that Hadoop keeps beside it.
    """
    from pyspark.errors import AnalysisException

    # Spark takes a path for a pattern; a folder may have brackets in its name.
    exact = re.sub(r"[][{}*?\\]", r"\\\g<0>", path)
    try:
        return [row[0] for row in spark.read.text(exact).collect()]
    except AnalysisException:
        return None
    except Exception as error:  # Java's own
        if WRONG_SUM not in str(error):
            raise
        raise damaged(path) from error


def is_folder(spark: "SparkSession", folder: str) -> bool:
    """Tell whether there is a folder, on any file system that Spark writes to.

    Spark has no call of its own for it, nor for its removal.
    """
    if (seen := _as_files(spark, folder)) is not None:
        return os.path.isdir(seen)
    path, files = _on_its_file_system(spark, folder)
    return bool(files.exists(path))


def folders_in(spark: "SparkSession", folder: str) -> list[str]:
    """Return the paths of the folders in a folder; none where it is not there."""
    if not is_folder(spark, folder):
        return []
    if (seen := _as_files(spark, folder)) is not None:
        names = [each.name for each in os.scandir(seen) if each.is_dir()]
    else:
        path, files = _on_its_file_system(spark, folder)
        there = [each for each in files.listStatus(path) if each.isDirectory()]
        names = [str(each.getPath().getName()) for each in there]
    return [f"{folder}/{name}" for name in sorted(names)]


def remove(spark: "SparkSession", folder: str) -> None:
    """Remove a folder and all that is in it, if it is there; warn where some of it stays."""
    if (seen := _as_files(spark, folder)) is not None:
        for _ in range(2):  # another run may have put a file into it meanwhile
            shutil.rmtree(seen, ignore_errors=True)
        stays = os.path.lexists(seen)
    else:
        path, files = _on_its_file_system(spark, folder)
        stays = not files.delete(path, True) and files.exists(path)
    if stays:
        logger.warning("%s: could not be removed; it may hold texts, so remove it by hand", folder)


def on_this_machine(spark: "SparkSession", folder: str) -> str | None:
    """Return the path of a folder on this machine's own disk; None for one elsewhere.

    With Connect, where Spark's folders are cannot be told.

    Raises:
        TableError: there is no such file system.
    """
    if _as_files(spark, folder) is not None:
        return None
    try:
        path, files = _on_its_file_system(spark, folder)
    except Exception as error:  # of Java's own
        if not hasattr(error, "java_exception"):
            raise
        raise TableError(
            f"{folder}: is of a file system that this Spark does not know ({root_cause(error)})"
        ) from error
    where = files.makeQualified(path).toUri()
    return str(where.getPath()) if where.getScheme() == "file" else None


def _as_files(spark: "SparkSession", folder: str) -> str | None:
    """Return a folder's path if the driver is to see it as files; None where Hadoop is asked.

    With Connect there is no JVM to ask, and folders are on Volumes.
    """
    path = folder.removeprefix("dbfs:")
    is_volume = path.startswith(VOLUMES) and "DATABRICKS_RUNTIME_VERSION" in os.environ
    return path if is_connect(spark) or is_volume else None


def _on_its_file_system(spark: "SparkSession", folder: str) -> tuple[Any, Any]:
    jvm: Any = spark._jvm
    path = jvm.org.apache.hadoop.fs.Path(folder)
    return path, path.getFileSystem(spark._jsc.hadoopConfiguration())
