"""A micro-batch that was scored and is not in the target yet: it outlives a crash in between.

A stage is a Delta table of one commit in the checkpoint's folder, named by its micro-batch, so
that it is there whole or not at all, and of two runs that make the same one at once a single one
does. It goes once its micro-batch is in the target.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lakescore.errors import BusyError, TableError
from lakescore.tables.folders import remove
from lakescore.tables.names import NO_LOG, absolute, condition, exists, history
from lakescore.tables.source import WRONG_SUM, names_file

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# What is said of a table whose log, or whose rows, are not as they were written; all else may pass.
_NO_LOG_LEFT = (WRONG_SUM, "DELTA_STATE_RECOVER_ERROR")
_NO_ROWS_LEFT = (WRONG_SUM, "ParquetDecodingException", "is not a Parquet file")
_GONE = ("FILE_NOT_EXIST", "FileNotFound", "PATH_NOT_FOUND")  # and its log not yet
# What Delta says of a table that another run has just made.
_THERE = ("DELTA_METADATA_CHANGED", "DELTA_PATH_EXISTS", "DELTA_PROTOCOL_CHANGED")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """How a micro-batch was scored, and the target's version then: it was committed after that."""

    digest: str
    target_version: int


def find(spark: "SparkSession", folder: str) -> Manifest | None:
    """Return what is staged in a folder; None where nothing is, or not wholly."""
    try:
        if not exists(spark, folder):
            return None
        # Its first commit: one that compacts its files may have come after that.
        row = history(spark, folder).where("version = 0").select("userMetadata").first()
        return None if row is None else Manifest(**json.loads(row[0]))
    except (TableError, TypeError, ValueError) as error:
        said = str(error)
        if not isinstance(error, TableError) or any(sign in said for sign in _NO_LOG_LEFT):
            remove(spark, folder)
        elif exists(spark, folder):
            raise
        return None  # or another run has just removed it


def write(scored: "DataFrame", folder: str, manifest: Manifest) -> None:
    """Score a micro-batch into a stage; where another run has just staged it, that one stays.

    Raises:
        BusyError: it did so with other models or settings, or has removed it already.
    """
    try:
        save_aside(scored, folder, userMetadata=json.dumps(asdict(manifest)))
    except Exception as error:  # Spark's, Delta's, and Java's own
        found = find(scored.sparkSession, folder)
        if found is None:
            if any(sign in str(error) for sign in _THERE):
                raise _overtaken(folder) from error
            raise
        if found.digest != manifest.digest:
            raise BusyError(
                f"{folder}: another run of this job is at work, with other models or settings; "
                "run this one again when that has ended"
            ) from error


def save_aside(rows: "DataFrame", folder: str, *by: str, **options: str) -> None:
    """Save rows as a new Delta table, divided `by` columns, that goes when the run has ended."""
    from pyspark.errors import AnalysisException

    writer = rows.write.format("delta").mode("error").partitionBy(*by)
    properties = {
        # Statistics would put the beginnings of texts into the log.
        "delta.dataSkippingNumIndexedCols": "0",
        # The source's columns may have any name, the text's among them.
        "delta.columnMapping.mode": "name",
    }
    writer = writer.options(**properties, **options)
    try:
        writer.save(folder)
    except AnalysisException as error:
        if condition(error) != NO_LOG:
            raise
        remove(rows.sparkSession, folder)  # what a run that was killed has left
        writer.save(folder)


@contextmanager
def kept(spark: "SparkSession", folder: str) -> Iterator[None]:
    """Say of rows put aside in a folder that they went, or cannot be read, if that is so.

    Raises:
        BusyError: they went while they were read, by another run of the same job.
        TableError: a file of theirs is damaged; they are removed.
    """
    try:
        yield
    except Exception as error:  # Spark's, Delta's, and Java's own, or lakescore's
        said = str(error)
        where = absolute(folder)
        is_named = where in said or names_file(said, where)  # as Spark or as Databricks spells it
        is_gone = is_named and any(sign in said for sign in _GONE)
        is_damaged = is_named and any(sign in said for sign in _NO_ROWS_LEFT)
        if not is_gone and not is_damaged and exists(spark, folder):
            raise
        remove(spark, folder)  # what is left of it is of no use
        if is_damaged:
            raise TableError(
                f"{folder}: a file of what was put aside there is damaged, as after a loss of "
                "power; run the job again, which makes it anew"
            ) from error
        raise _overtaken(folder) from error


def _overtaken(folder: str) -> BusyError:
    return BusyError(
        f"{folder}: another run of this job is at work or was faster, and removed what was put "
        "aside; what is not in the target yet, the next run scores"
    )
