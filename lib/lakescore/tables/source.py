"""The source: the table that is read, its keys, and why it cannot be read on."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from lakescore.errors import BusyError, LakescoreError, RefusedRowsError, TableError, root_cause
from lakescore.tables.changes import CHANGE
from lakescore.tables.names import describe, identifier, quoted, version

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

DENIED = ("AccessDenied", "Permission denied")
WRONG_SUM = "ChecksumException"  # of a file, by the sum that Hadoop keeps beside it
# What Spark and Delta say of data files, change files and commits that are not there any more.
_GONE = (
    "DELTA_CHANGE_DATA_FILE_NOT_FOUND",
    "DELTA_LOG_FILE_NOT_FOUND",
    "DELTA_MISSING_FILES_UNEXPECTED_VERSION",
    "DELTA_VERSION_NOT_FOUND",
    "DELTA_VERSIONS_NOT_CONTIGUOUS",
)
_NO_FILE = ("FILE_NOT_EXIST", "FileNotFoundException")  # of any table, or of Spark's own
_FEED = "delta.enableChangeDataFeed"
RECOVER = (
    "run once with --set source.changes=snapshot, which scores only what the target lacks; "
    "after that the job goes on as before"
)
UNIQUE = f"take the doubles out of the source, or name another source.key, and {RECOVER}"


@dataclass(frozen=True, slots=True)
class Source:
    """The table that is read: its name or path, its id (new when it is made anew), its version.

    `location` is the folder of its files, with its scheme.
    """

    table: str
    id: str
    version: int
    location: str = ""


def find(spark: "SparkSession", table: str, *, needs_feed: bool) -> Source:
    """Return a source as it is now.

    Raises:
        TableError: it is not a Delta table, or has no change data feed where that is needed.
    """
    details = describe(spark, table)
    if needs_feed and details.properties.get(_FEED, "false").lower() != "true":
        raise TableError(
            f"{table}: has no change data feed, which source.changes: cdf reads; ALTER TABLE "
            f"{identifier(table)} SET TBLPROPERTIES ({_FEED} = true), or choose snapshot"
        )
    return Source(table, details.id, version(spark, table), details.location)


def check_keys(rows: "DataFrame", table: str, key: Sequence[str]) -> None:
    """Check that a key identifies each row.

    Raises:
        RefusedRowsError: keys are null, or are there more than once.
    """
    from pyspark.sql import functions as F

    columns = [F.col(quoted(name)) for name in key]
    is_null = reduce(lambda a, b: a | b, (column.isNull() for column in columns))
    times = F.col(CHANGE)  # of that name no key is
    found = (
        rows.groupBy(*columns)
        .agg(F.count(F.lit(1)).alias(CHANGE))
        .select(F.when(is_null, times).alias("null"), F.when(times > 1, times).alias("double"))
        .agg(F.sum("null"), F.count("double"), F.sum("double"))
        .head()
    )
    assert found is not None  # an aggregate without groups has one row
    refuse_null_keys(table, key, int(found[0] or 0))
    refuse_double_keys(table, key, int(found[1]), int(found[2] or 0))


def refuse_null_keys(table: str, key: Sequence[str], rows: int) -> None:
    """Refuse rows without a key.

    Raises:
        RefusedRowsError: there is one.
    """
    if rows:
        raise RefusedRowsError(
            f"{table}: source.key ({', '.join(key)}) is null in {rows:,} rows; fill it and "
            f"{RECOVER}; or name columns in source.key that are never null"
        )


def refuse_double_keys(table: str, key: Sequence[str], keys: int, rows: int | None = None) -> None:
    """Refuse keys that several rows have.

    Raises:
        RefusedRowsError: there is one.
    """
    if keys:
        where = "" if rows is None else f", in {rows:,} rows"
        raise RefusedRowsError(
            f"{table}: {keys:,} keys ({', '.join(key)}) are there more than once{where}; {UNIQUE}"
        )


def unreadable(error: Exception, source: Source) -> TableError | None:
    """Say that a file of a source may not be read; None if the error is another."""
    said = str(error)
    if any(sign in said for sign in DENIED) and names_file(said, source.location):
        return TableError(
            f"{source.table}: a file of it cannot be read ({root_cause(error)}); let this Spark "
            "read the table's folder, and run the job again"
        )
    return None


def damaged(file: str) -> TableError:
    """Say that a file of a checkpoint is not what it was."""
    return TableError(
        f"{file}: is not as Spark wrote it, as after a loss of power; restore target.checkpoint, "
        f"or {RECOVER}"
    )


def read_error(said: str, at: Source, target: str, location: str) -> LakescoreError | None:
    """Say why a source cannot be read on, in words that quote no row; None if it is not that.

    What `said` it may have meant a file of the `target`, whose files are in `location`.
    """
    source = at.table
    if "DELTA_SOURCE_TABLE_IGNORE_CHANGES" in said or "DELTA_SOURCE_IGNORE_DELETE" in said:
        return TableError(
            f"{source}: rows in it were changed or deleted since the last run, and source.changes "
            f"is append; set it to cdf if {_FEED} was on by then, else set it "
            "on now, run once with --set source.changes=snapshot, and then with cdf"
        )
    if "DELTA_MISSING_CHANGE_DATA" in said:
        return TableError(
            f"{source}: its change data feed was off for a while, or was turned on after the last "
            f"run; with {_FEED} on, {RECOVER}"
        )
    if "DIFFERENT_DELTA_TABLE_READ_BY_STREAMING_SOURCE" in said:
        return TableError(
            f"{source}: is not the table that the checkpoint remembers; if another job has that "
            f"checkpoint, give each its own target.checkpoint; if it was made anew, {RECOVER}"
        )
    if "DELTA_STREAMING_INCOMPATIBLE_SCHEMA_CHANGE" in said or "DELTA_SCHEMA_CHANGED" in said:
        return TableError(
            f"{source}: a column of it was renamed, dropped or given another type since the last "
            f"run, or one was added while this run was at work; run again, and if that says the "
            f"same, {RECOVER}"
        )
    if read := re.search(r"Failed to read log file (.+?)\. ", said):
        return damaged(read[1])
    is_file = any(sign in said for sign in _NO_FILE)
    is_source = is_file and names_file(said, at.location)
    if is_file and names_file(said, location) and not is_source:
        return TableError(
            f"{target}: files of it went while it was read, by VACUUM with a retention that is "
            "shorter than a run, or by another's hand; run the job again"
        )
    if is_source or any(sign in said for sign in _GONE):
        return TableError(
            f"{source}: files that the last run had not read yet are gone, by VACUUM or by the "
            f"clean-up of its log; {RECOVER}"
        )
    if any(sign in said for sign in ("CONCURRENT_STREAM_LOG_UPDATE", "Multiple streaming")):
        return BusyError(
            f"another run of this job reads {source} at this moment and was faster; it has the rows"
        )
    return None


def names_file(said: str, location: str) -> bool:
    """Tell whether an error names a file of a folder, by any scheme, and in any signs."""
    folder, hidden = re.sub(r"^\w+:/*", "/", location).rstrip("/"), "REDACTED_LOCAL_PART@"
    if hidden in said:  # Databricks' word for an account's container
        folder = re.sub("^/[^/]*@", hidden, folder)
    if location.startswith("hdfs:") and folder not in said:  # which may leave out the host
        folder = urlsplit(location).path.rstrip("/")
    return bool(folder) and any(
        re.search(rf"(^|[\s:\"])/*{re.escape(sign(folder))}/", sign(said))
        for sign in (str, unquote)
    )
