"""Delta tables: what is new in the source, how scores are appended to the target."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakescore.config import JobConfig
from lakescore.errors import ConfigError, TableError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery
    from pyspark.sql.types import StructType

CHECKPOINT = "_lakescore_checkpoint"


def is_path(table: str) -> bool:
    """Tell a path (anything with a slash) from a name in the catalog."""
    return "/" in table


def load(spark: "SparkSession", table: str) -> "DataFrame":
    """Read a Delta table by name or path.

    Raises:
        TableError: there is no such table, or it is not Delta.
    """
    from pyspark.errors import AnalysisException

    try:
        is_named = not is_path(table)
        found = spark.read.table(table) if is_named else spark.read.format("delta").load(table)
        found.schema  # noqa: B018  # Connect looks for the table only when it is asked
        return found
    except AnalysisException as error:
        kind = "path" if is_path(table) else "name"
        raise TableError(
            f"{table}: no Delta table under this {kind}; a path has a slash (./{table} for one "
            "in this folder), a name is known to the catalog"
        ) from error


def version(spark: "SparkSession", table: str) -> int:
    """Return the number of a Delta table's latest commit."""
    from delta.tables import DeltaTable

    delta = DeltaTable.forPath if is_path(table) else DeltaTable.forName
    latest = delta(spark, table).history(1).select("version").first()
    if latest is None:
        raise TableError(f"{table}: has no history; is it a Delta table?")
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
    if target is None:
        raise ConfigError("'target.table' is missing; name the Delta table to append to")
    if config.target.checkpoint is None and not is_path(target):
        raise ConfigError(
            f"'target.checkpoint' is missing; {target} is a name in the catalog: give a folder "
            "that lasts, such as /Volumes/catalog/schema/volume/checkpoint"
        )
    return source, target


def read_new(spark: "SparkSession", source: str, *, max_bytes: int) -> "DataFrame":
    """Return a stream of a table's rows, in micro-batches of about `max_bytes` of its files.

    The checkpoint of the query that writes it says which rows are new.

    Raises:
        TableError: there is no such table.
    """
    load(spark, source)
    reader = spark.readStream.format("delta").option("maxBytesPerTrigger", max_bytes)
    return reader.load(source) if is_path(source) else reader.table(source)


def count(spark: "SparkSession", table: str) -> int:
    """Count a table's rows, which Delta knows without reading them; 0 if it does not exist."""
    return load(spark, table).count() if exists(spark, table) else 0


def exists(spark: "SparkSession", table: str) -> bool:
    """Tell whether there is a Delta table of that name or path."""
    try:
        load(spark, table)
    except TableError:
        return False
    return True


def check_target(spark: "SparkSession", table: str, schema: "StructType") -> None:
    """Check that rows of `schema` can be appended to the target, if it exists already.

    Raises:
        TableError: a column is missing on either side, or has another type.
    """
    if not exists(spark, table):
        return
    there = {field.name: field.dataType.simpleString() for field in load(spark, table).schema}
    ours = {field.name: field.dataType.simpleString() for field in schema}
    for name in ours.keys() | there.keys():
        if ours.get(name) != there.get(name):
            raise TableError(
                f"{table}: its column {name!r} is {there.get(name, 'missing')}, the job's is "
                f"{ours.get(name, 'missing')}; choose another target.table or the same columns"
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
            f"{target}: is gone, but {checkpoint} remembers what was read for it; delete that "
            "folder too, to score the source from its beginning"
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
    return writer.start(target) if is_path(target) else writer.toTable(target)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One micro-batch that was committed, as Spark's progress reports it."""

    number: int
    rows_in: int
    observed: dict[str, float]


def committed(query: "StreamingQuery", *, after: int, observation: str) -> list[MicroBatch]:
    """Return the micro-batches committed since number `after`, oldest first."""
    found = []
    for progress in query.recentProgress:
        number, observed = int(progress["batchId"]), progress["observedMetrics"].get(observation)
        if number > after and observed is not None:
            values = observed if isinstance(observed, dict) else observed.asDict()
            found.append(MicroBatch(number, int(progress["numInputRows"]), values))
    return found
