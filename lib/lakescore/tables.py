"""Delta tables: what is new in the source, how scores are appended to the target."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lakescore.config import JobConfig
from lakescore.errors import ConfigError, TableError, root_cause

if TYPE_CHECKING:
    from pyspark.errors import StreamingQueryException
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery
    from pyspark.sql.types import StructType

CHECKPOINT = "_lakescore_checkpoint"
# What Spark and Delta say of a table that is not there; all else is about one that is.
_MISSING = frozenset(
    {
        "DELTA_MISSING_DELTA_TABLE",
        "DELTA_PATH_DOES_NOT_EXIST",
        "DELTA_TABLE_NOT_FOUND",
        "PATH_NOT_FOUND",
        "SCHEMA_NOT_FOUND",
        "TABLE_OR_VIEW_NOT_FOUND",
    }
)


def is_path(table: str) -> bool:
    """Tell a path (anything with a slash) from a name in the catalog."""
    return "/" in table


def quoted(column: str) -> str:
    """Return a column's name for a Spark expression: it may hold a dot or a space."""
    return "`" + column.replace("`", "``") + "`"


def load(spark: "SparkSession", table: str) -> "DataFrame":
    """Read a Delta table by name or path.

    Raises:
        TableError: there is no such table, or it is not Delta.
    """
    found = _find(spark, table)
    if found is None:
        remedy = f"name the table as the catalog does, or its path with a slash (./{table})"
        if is_path(table):
            remedy = "name the folder that holds its _delta_log, or the table as the catalog does"
        kind = "path" if is_path(table) else "name"
        raise TableError(f"{table}: no Delta table under this {kind}; {remedy}")
    return found


def _find(spark: "SparkSession", table: str) -> "DataFrame | None":
    """Read a table; None where there is none.

    Raises:
        TableError: something is there that cannot be read, or the name is none.
    """
    from pyspark.errors import AnalysisException, PySparkException

    try:
        is_named = not is_path(table)
        found = spark.read.table(table) if is_named else spark.read.format("delta").load(table)
        found.schema  # noqa: B018  # Connect looks for the table only when it is asked
        return found
    except AnalysisException as error:
        condition = getattr(error, "getCondition", error.getErrorClass)  # its name since Spark 4
        if condition() in _MISSING:
            return None
        reason = str(error).strip().splitlines()[0][:200]
        raise TableError(f"{table}: cannot be read; check the name and the grants: {reason}") from (
            error
        )
    except Exception as error:  # of Java's own: of a file system that is not there
        if not isinstance(error, PySparkException) and not hasattr(error, "java_exception"):
            raise
        raise TableError(
            f"{table}: cannot be read; name a path or a table that this Spark can reach "
            f"({root_cause(error)})"
        ) from error


def version(spark: "SparkSession", table: str) -> int:
    """Return the number of a Delta table's latest commit.

    Raises:
        TableError: there is no such table, or it is a view, or of another format.
    """
    from delta.tables import DeltaTable
    from pyspark.errors import AnalysisException

    load(spark, table)
    delta = DeltaTable.forPath if is_path(table) else DeltaTable.forName
    try:
        latest = delta(spark, table).history(1).select("version").first()
    except AnalysisException as error:
        raise TableError(
            f"{table}: is not a Delta table; name one, or save it with format delta"
        ) from error
    assert latest is not None  # a Delta table has a first commit
    return int(latest["version"])


def job_tables(config: JobConfig) -> tuple[str, str]:
    """Return the job's source and target, having checked that it names all that it needs.

    Raises:
        ConfigError: a table, the key or the checkpoint is missing.
    """
    source, target = config.source.table, config.target.table
    if source is None:
        raise ConfigError("'source.table' is missing; name the Delta table to score")
    if not config.source.key:
        raise ConfigError("'source.key' is missing; name the columns that identify a row")
    if target is not None and _place(source) == _place(target):
        raise ConfigError(f"'target.table' is {target}, the source; name another table")
    if target is None:
        raise ConfigError("'target.table' is missing; name the Delta table to append to")
    if config.target.checkpoint is None and not is_path(target):
        raise ConfigError(
            f"'target.checkpoint' is missing; {target} is a name in the catalog: give a folder "
            "that lasts, such as /Volumes/catalog/schema/volume/checkpoint"
        )
    return source, target


def _place(table: str) -> str:
    return os.path.abspath(table) if is_path(table) else table


def read_new(spark: "SparkSession", source: str, *, max_bytes: int) -> "DataFrame":
    """Return a stream of a table's rows, in micro-batches of about `max_bytes` of its files.

    The checkpoint of the query that writes it says which rows are new. That it is a Delta table
    is known: `version` was asked.
    """
    reader = spark.readStream.format("delta").option("maxBytesPerTrigger", max_bytes)
    return reader.load(source) if is_path(source) else reader.table(source)


def count(spark: "SparkSession", table: str) -> int:
    """Count a table's rows, which Delta knows without reading them; 0 if it does not exist."""
    found = _find(spark, table)
    return 0 if found is None else found.count()


def exists(spark: "SparkSession", table: str) -> bool:
    """Tell whether there is a Delta table of that name or path."""
    return _find(spark, table) is not None


def check_target(spark: "SparkSession", table: str, schema: "StructType") -> None:
    """Check that rows of `schema` can be appended to the target, if it exists already.

    Raises:
        TableError: a column is missing on either side, or has another type; or where the target
            would be made there is something else.
    """
    found = _find(spark, table)
    if found is None:
        _check_room(table)
        return
    there = {field.name: field.dataType.simpleString() for field in found.schema}
    ours = {field.name: field.dataType.simpleString() for field in schema}
    for name in [*ours, *there]:
        if ours.get(name) != there.get(name):
            raise TableError(
                f"{table}: its column {name!r} is {there.get(name, 'missing')}, the job's is "
                f"{ours.get(name, 'missing')}; choose another target.table or the same columns"
            )


def _check_room(target: str) -> None:
    """Refuse to make a table in a folder of other files; only one of this host can be seen."""
    if not is_path(target):
        return
    if "_delta_log" in Path(target).parts:
        raise TableError(f"{target}: is inside another table's log; name a folder of its own")
    others = set(os.listdir(target)) - {CHECKPOINT} if os.path.isdir(target) else set()
    if others:
        raise TableError(
            f"{target}: is a folder of other files ({min(others)}), not a Delta table; name an "
            "empty or a new folder"
        )


def checkpoint_of(target: str, checkpoint: str | None) -> str:
    """Return where a query remembers what it read: for a path inside the target, if not given."""
    return checkpoint or f"{target.rstrip('/')}/{CHECKPOINT}"


def check_checkpoint(spark: "SparkSession", target: str, checkpoint: str) -> None:
    """Check that no checkpoint outlived its target: the rows that it remembers would be lost.

    Raises:
        TableError: the target is gone, and a micro-batch was committed to it before.
    """
    from pyspark.errors import AnalysisException

    if exists(spark, target):
        return
    try:
        commits = spark.read.text(f"{checkpoint}/commits").head(1)
    except AnalysisException:  # there is no such folder
        return
    if commits:
        raise TableError(
            f"{target}: is not there, but {checkpoint} remembers what was read for a target; if "
            "that is another one, name another target.checkpoint; if this one was deleted, delete "
            "that folder too, to score the source from its beginning"
        )


def append(scored: "DataFrame", target: str, checkpoint: str) -> "StreamingQuery":
    """Start appending a stream to the target, and return the running query.

    Delta's own streaming sink writes each micro-batch with the query's id and the micro-batch's
    number as its transaction (txnAppId, txnVersion), so that one that is repeated after a crash
    is not added twice.
    """
    writer = (
        scored.writeStream.format("delta")
        .outputMode("append")
        .trigger(availableNow=True)
        .option("checkpointLocation", checkpoint)
    )
    try:
        return writer.start(target) if is_path(target) else writer.toTable(target)
    except Exception as error:  # of Java's own: of a file system, for instance
        if not hasattr(error, "java_exception"):
            raise
        raise TableError(
            f"{target}: it, or its checkpoint {checkpoint}, cannot be written "
            f"({root_cause(error)}); name a folder that can"
        ) from error


def stopped(
    error: "StreamingQueryException", source: str, target: str, checkpoint: str
) -> TableError | None:
    """Say why a query stopped, where it is about the tables; Delta's own words may quote rows."""
    said = str(error)
    if "DELTA_SOURCE_TABLE_IGNORE_CHANGES" in said or "DELTA_SOURCE_IGNORE_DELETE" in said:
        return TableError(
            f"{source}: rows in it were changed or deleted since the last run, and the job only "
            "adds rows; score it into a new target.table, with a checkpoint of its own"
        )
    if "DIFFERENT_DELTA_TABLE_READ_BY_STREAMING_SOURCE" in said:
        return TableError(
            f"{source}: is not the table that {checkpoint} remembers; it was made anew, or another "
            "job has this checkpoint: name another target.table and target.checkpoint"
        )
    if "DELTA_STREAMING_INCOMPATIBLE_SCHEMA_CHANGE" in said:
        return TableError(
            f"{source}: a column of it was renamed or dropped since the last run; score it into a "
            "new target.table, with a checkpoint of its own"
        )
    if "DELTA_VIOLATE_CONSTRAINT" in said or "DELTA_NOT_NULL_CONSTRAINT" in said:
        return TableError(
            f"{target}: a constraint of it refuses a row of {source}; drop that constraint, or "
            "take such rows out of the source"
        )
    if "DELTA_NULL_SCHEMA_IN_STREAMING_WRITE" in said:
        return TableError(
            f"{source}: one of its columns is of type void, which the target cannot have; cast it, "
            "or leave it out by source.columns"
        )
    if "DELTA_INVALID_CHARACTERS_IN_COLUMN_NAMES" in said:
        return TableError(
            f"{source}: the name of one of its columns holds a space or one of ,;{{}}()=, which "
            "the target cannot have; leave it out by source.columns"
        )
    return None


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One micro-batch that was committed: its number, and what each observation found in it."""

    number: int
    observed: dict[str, dict[str, float]]


def committed(query: "StreamingQuery", *, after: int) -> list[MicroBatch]:
    """Return the micro-batches committed since number `after`, oldest first.

    Spark keeps the progress of the last hundred only: who asks too late misses some.
    """
    found = []
    for progress in query.recentProgress:
        number, observed = int(progress["batchId"]), progress["observedMetrics"]
        if number > after and observed:
            found.append(
                MicroBatch(
                    number,
                    {
                        name: values if isinstance(values, dict) else values.asDict()
                        for name, values in observed.items()
                    },
                )
            )
    return found
