"""What is new in a source: rows added, its change feed, or how it differs from the target.

Every row comes with `CHANGE`, which says what is to become of it in the target.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from lakescore.errors import BusyError, LakescoreError, TableError
from lakescore.tables.names import describe, identifier, is_path, load, quoted, version

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

CHANGE, HASH = "_change", "text_hash"
INSERT, UPDATE, DELETE = "insert", "update", "delete"
# Other columns changed and the text did not: they are carried over, and the scores stay.
REFRESH = "refresh"
# New scores for a row of the target, while its text is still the one that was scored.
RESCORE = "rescore"
# A key that the source has more than once.
DOUBLE = "double"

# What Spark and Delta say of data files, change files and commits that are not there any more.
_GONE = (
    "DELTA_CHANGE_DATA_FILE_NOT_FOUND",
    "DELTA_LOG_FILE_NOT_FOUND",
    "DELTA_VERSION_NOT_FOUND",
    "DELTA_VERSIONS_NOT_CONTIGUOUS",
    "FILE_NOT_EXIST",
    "FileNotFoundException",
)
_FEED = "delta.enableChangeDataFeed"
_FEED_COLUMNS = ("_change_type", "_commit_version", "_commit_timestamp")
RECOVER = (
    "run once with --set source.changes=snapshot, which scores only what the target lacks; "
    "after that the job goes on as before"
)
UNIQUE = f"take the doubles out of the source, or name another source.key, and {RECOVER}"


def read_stream(
    spark: "SparkSession",
    source: str,
    *,
    feed: bool,
    starting_version: int | None,
    max_bytes: int,
    max_files: int | None,
) -> "DataFrame":
    """Return a stream of a table's rows, or of its change feed, in bounded micro-batches.

    The checkpoint of the query that writes it says which are new. Without a starting version it
    begins with all rows that are there.
    """
    options = {
        "maxBytesPerTrigger": max_bytes,
        "maxFilesPerTrigger": max_files or 2**31 - 1,
        "readChangeFeed": feed or None,
        "startingVersion": starting_version,
    }
    reader = spark.readStream.format("delta")
    for name, value in options.items():
        if value is not None:
            reader = reader.option(name, value)
    return reader.load(source) if is_path(source) else reader.table(identifier(source))


def without_feed_columns(columns: Sequence[str]) -> list[str]:
    """Return the columns that a change feed shares with its table."""
    return [name for name in columns if name not in _FEED_COLUMNS]


@dataclass(frozen=True, slots=True)
class Source:
    """The table that is read: its name or path, its id (new when it is made anew), its version."""

    table: str
    id: str
    version: int


def find(spark: "SparkSession", table: str, *, needs_feed: bool) -> Source:
    """Return a source as it is now.

    Raises:
        TableError: it is not a Delta table, or has no change data feed where that is needed.
    """
    details = describe(spark, table)
    if needs_feed and details.properties.get(_FEED, "false") != "true":
        raise TableError(
            f"{table}: has no change data feed, which source.changes: cdf reads; ALTER TABLE "
            f"{identifier(table)} SET TBLPROPERTIES ({_FEED} = true), or choose snapshot"
        )
    return Source(table, details.id, version(spark, table))


def net_changes(feed: "DataFrame", key: Sequence[str]) -> "DataFrame":
    """Return one row for each key in a part of a change feed: its last state, and its `CHANGE`.

    A key whose rows were added less often than taken away, or as often, was there before. One that
    is added twice more than it is taken away, or twice by one commit, is `DOUBLE`. An update that
    gives a row another key takes one key away and adds another.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    of_key = Window.partitionBy(*map(quoted, key))
    is_added = F.col("_change_type").isin("insert", "update_postimage")
    version = F.col("_commit_version")
    counted = feed.withColumns(
        {
            "_last": F.max(version).over(of_key),
            "_net": F.sum(F.when(is_added, 1).otherwise(-1)).over(of_key),
        }
    ).where(version == F.col("_last"))
    others = [name for name in without_feed_columns(feed.columns) if name not in key]
    is_there = F.col("_added") > 0
    state = F.when(F.col("_added") == 0, DELETE).when(F.col("_added") > 1, DOUBLE)
    state = state.when(F.col("_net") > 1, DOUBLE).when(F.col("_net") == 1, INSERT).otherwise(UPDATE)
    latest_first = Window.partitionBy(*map(quoted, key)).orderBy(is_added.desc())
    return (
        counted.withColumns(
            {
                "_added": F.sum(F.when(is_added, 1).otherwise(0)).over(of_key),
                "_nth": F.row_number().over(latest_first),
            }
        )
        .where("_nth = 1")
        .select(
            *(F.col(quoted(name)) for name in key),
            # Of a row that is deleted nothing but the key goes on.
            *(F.when(is_there, F.col(quoted(name))).alias(name) for name in others),
            state.alias(CHANGE),
        )
    )


def differences(
    source: "DataFrame",
    target: "DataFrame",
    *,
    key: Sequence[str],
    carried: Sequence[str],
    versions: Mapping[str, str],
    with_deletes: bool,
) -> "DataFrame":
    """Return the rows of `source` (with `HASH`) in which the target is behind, with `CHANGE`.

    `carried` are the columns that both have, `versions` the tasks' model versions. A key whose
    text was scored by them is left out, or is a `REFRESH` where another column changed.
    `with_deletes`, keys that only the target has are `DELETE`, their other columns null.
    """
    from pyspark.sql import functions as F

    def ours(name: str) -> "Column":
        return F.col(f"s.{quoted(name)}")

    def theirs(name: str) -> "Column":
        return F.col(f"t.{quoted(name)}")

    same_key = reduce(lambda a, b: a & b, (ours(name) == theirs(name) for name in key))
    is_scored = ours(HASH).eqNullSafe(theirs(HASH)) & is_scored_by(versions, "t.model")
    others = [name for name in source.columns if name not in (*key, HASH)]
    is_same = F.lit(True)
    for name in set(carried) - set(key):
        mine, its = (_comparable(side(name), source, name) for side in (ours, theirs))
        is_same &= mine.eqNullSafe(its)
    change = (
        F.when(ours(key[0]).isNull(), DELETE)
        .when(theirs(key[0]).isNull(), INSERT)
        .when(~is_scored, UPDATE)
        .when(~is_same, REFRESH)
    )
    joined = source.alias("s").join(
        target.alias("t"), same_key, "full_outer" if with_deletes else "left"
    )
    columns = [F.coalesce(ours(name), theirs(name)).alias(name) for name in key]
    columns += [ours(name) for name in (*others, HASH)]
    return joined.select(*columns, change.alias(CHANGE)).where(F.col(CHANGE).isNotNull())


def is_scored_by(versions: Mapping[str, str], model: str = "model") -> "Column":
    """Tell rows that were scored by these model versions, by their column `model`."""
    from pyspark.sql import functions as F

    same = (F.col(model)[task].eqNullSafe(F.lit(each)) for task, each in versions.items())
    return reduce(lambda a, b: a & b, same)


def _comparable(column: "Column", df: "DataFrame", name: str) -> "Column":
    """Return a column that `=` takes: Spark compares no maps."""
    from pyspark.sql import functions as F

    return F.to_json(column) if "map<" in df.schema[name].dataType.simpleString() else column


def check_keys(rows: "DataFrame", table: str, key: Sequence[str]) -> None:
    """Check that a key identifies each row.

    Raises:
        TableError: keys are null, or are there more than once.
    """
    from pyspark.sql import functions as F

    columns = [F.col(quoted(name)) for name in key]
    is_null = reduce(lambda a, b: a | b, (column.isNull() for column in columns))
    times = F.col("times")
    found = (
        rows.groupBy(*columns)
        .agg(F.count(F.lit(1)).alias("times"))
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
        TableError: there is one.
    """
    if rows:
        raise TableError(
            f"{table}: source.key ({', '.join(key)}) is null in {rows:,} rows; fill it and "
            f"{RECOVER}; or name columns in source.key that are never null"
        )


def refuse_double_keys(table: str, key: Sequence[str], keys: int, rows: int | None = None) -> None:
    """Refuse keys that several rows have.

    Raises:
        TableError: there is one.
    """
    if keys:
        where = "" if rows is None else f", in {rows:,} rows"
        raise TableError(
            f"{table}: {keys:,} keys ({', '.join(key)}) are there more than once{where}; {UNIQUE}"
        )


def rows_expected(
    spark: "SparkSession", source: str, stream: str, number: int, starting_version: int | None
) -> int | None:
    """Count what an append stream has before it, from its micro-batch `number` on; None if unknown.

    Delta counts rows without reading them. After a crash inside a commit it may be more than
    there is: rows of that commit which were read before count again.
    """
    done = 0
    try:
        if number > 0:
            lines = spark.read.text(f"{stream}/offsets/{number - 1}").collect()
            offset = json.loads(lines[-1][0])
            whole = -1 if offset["isStartingVersion"] else int(offset["reservoirVersion"]) - 1
        else:
            whole = -1 if starting_version is None else starting_version - 1
        if whole >= 0:
            done = load(spark, source, version=whole).count()
        return max(load(spark, source).count() - done, 0)
    except LakescoreError:  # that version's log is gone
        return None


@dataclass(frozen=True, slots=True)
class VersionsRead:
    """The versions of a source that a run has read: the first, and the last one wholly read."""

    first: int | None = None
    last: int | None = None

    def after(self, progress: Any) -> "VersionsRead":
        """Return them with those of one micro-batch's progress added."""
        [source] = progress["sources"]
        begin, end = _offset(source["startOffset"]), _offset(source["endOffset"])
        if end is None:
            return self
        last = end["reservoirVersion"] - (end["index"] < 0)
        first = begin["reservoirVersion"] if begin else last
        return VersionsRead(min(self.first if self.first is not None else first, first, last), last)


def _offset(value: Any) -> dict[str, Any] | None:
    """Return Delta's offset: Spark 4 hands it over as the text of a dict, Spark 3.5 as a dict."""
    found = ast.literal_eval(value) if isinstance(value, str) else value
    return found if isinstance(found, dict) else None


def read_error(said: str, source: str) -> LakescoreError | None:
    """Say why a source cannot be read on, in words that quote no row; None if it is not that."""
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
            f"run; {RECOVER}"
        )
    if any(sign in said for sign in _GONE):
        return TableError(
            f"{source}: files that the last run had not read yet are gone, by VACUUM or by the "
            f"clean-up of its log; {RECOVER}"
        )
    if any(sign in said for sign in ("CONCURRENT_STREAM_LOG_UPDATE", "Multiple streaming")):
        return BusyError(
            f"another run of this job reads {source} at this moment and was faster; it has the rows"
        )
    return None
