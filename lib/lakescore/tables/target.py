"""The target: made with all that describes it, or checked, and who writes it."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakescore.errors import TableError, root_cause
from lakescore.tables.lock import alone
from lakescore.tables.names import (
    describe,
    exists,
    identifier,
    is_path,
    load,
    place,
    quoted,
    set_property,
)
from lakescore.tables.writing import append, committed, write_error

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType

_WRITERS = "lakescore.writers"
_CLUSTERED = ("bigint", "int", "smallint", "tinyint", "string", "date", "timestamp", "decimal")


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A job that writes a target, as the target itself records it.

    `query` is the id of the streaming query that appends or merges; None after a snapshot, whose
    source was read wholly at `version`.
    """

    source: str
    id: str
    key: tuple[str, ...]
    query: str | None = None
    version: int | None = None


def prepare(
    spark: "SparkSession",
    table: str,
    schema: "StructType",
    *,
    key: Sequence[str],
    text: str,
    evolve: bool,
    constraints: Mapping[str, str],
) -> None:
    """Make the target, or see that rows of `schema` fit the one that is there.

    A new one has the comments of `schema`, the `constraints` (name -> expression), and is
    clustered by its key where Delta can. Delta keeps the least and greatest value of some columns
    in its log: of texts it shall not.

    Raises:
        TableError: a column is missing on either side, or has another type; or where the target
            would be made there is something else; or it cannot be made.
    """
    if not exists(spark, table):
        if is_path(table) and "_delta_log" in Path(table).parts:
            raise TableError(f"{table}: is inside another table's log; name a folder of its own")
        with alone(spark, table, wait=True):
            _create(spark, table, schema, key=key, text=text, constraints=constraints)
    missing = _check_columns(load(spark, table).schema, schema, table, evolve=evolve)
    if missing:
        added = spark.createDataFrame([], type(schema)(missing))
        committed(spark, table, lambda: append(added, table, mergeSchema="true"))


def _create(
    spark: "SparkSession",
    table: str,
    schema: "StructType",
    *,
    key: Sequence[str],
    text: str,
    constraints: Mapping[str, str],
) -> None:
    from delta.tables import DeltaTable

    if exists(spark, table):  # another job was faster
        return
    _check_room(table)
    types = {each.name: each.dataType.simpleString() for each in schema}
    strings = [each for each in types if types[each] == "string" and each not in key]
    with_statistics = [
        quoted(name)
        for name, kind in types.items()
        if name != text
        and (name not in strings or name == "run_id")
        and not kind.startswith(("array", "map", "struct", "binary", "variant"))
    ]
    builder = DeltaTable.createIfNotExists(spark)
    if is_path(table):
        builder = builder.location(table)
    else:
        builder = builder.tableName(identifier(table))
    for each in schema:
        comment = each.metadata.get("comment")
        builder = builder.addColumn(each.name, each.dataType, comment=comment)
    for name, expression in constraints.items():
        builder = builder.property(f"delta.constraints.{name}", expression)
    builder = builder.property("delta.dataSkippingStatsColumns", ",".join(with_statistics))
    builder = builder.property("delta.enableDeletionVectors", "true")
    clustered = [name for name in key if types[name].startswith(_CLUSTERED) and name != text]
    if clustered:
        builder = builder.clusterBy(*clustered[:4])
    try:
        builder.execute()
    except Exception as error:  # Spark's, Delta's, and Java's own
        if not exists(spark, table):  # else another job was faster
            said = f"{table}: cannot be made ({root_cause(error)}); name another target.table"
            raise write_error(table, error) or TableError(said) from error


def _check_columns(
    there: "StructType", ours: "StructType", table: str, *, evolve: bool
) -> list[Any]:
    """Return the fields that the target has to gain."""
    theirs = {each.name: each.dataType.simpleString() for each in there}
    mine = {each.name: each.dataType.simpleString() for each in ours}
    for name in [*mine, *theirs]:
        has, wants = theirs.get(name, "missing"), mine.get(name, "missing")
        if has == wants or (evolve and "missing" in (has, wants)):
            continue
        remedy = "choose another target.table or the same columns"
        if has == "missing":
            remedy = f"set target.evolve: true to add it, or {remedy} (source.columns)"
        elif wants == "missing":
            remedy = f"set target.evolve: true to leave it null in new rows, or {remedy}"
        raise TableError(f"{table}: its column {name!r} is {has}, the job's is {wants}; {remedy}")
    return [each for each in ours if each.name not in theirs]


def _check_room(target: str) -> None:
    """Refuse to make a table in a folder of other files; only one of this host can be seen."""
    others = os.listdir(target) if is_path(target) and os.path.isdir(target) else []
    if others := [name for name in others if not name.startswith("_")]:  # hidden from Delta
        raise TableError(
            f"{target}: is a folder of other files ({min(others)}), not a Delta table; name an "
            "empty or a new folder"
        )


def writers(spark: "SparkSession", table: str) -> list[Writer]:
    """Return the jobs that write a target, as its properties have them."""
    recorded = json.loads(describe(spark, table).properties.get(_WRITERS, "[]"))
    return [Writer(**each | {"key": tuple(each["key"])}) for each in recorded]


def register(spark: "SparkSession", table: str, writer: Writer) -> None:
    """Record a job in the target, in place of what was recorded of its source before."""

    def write() -> None:
        others = [
            each
            for each in writers(spark, table)
            if place(each.source) != place(writer.source) and each.id != writer.id
        ]
        recorded = json.dumps([asdict(each) for each in [*others, writer]])
        set_property(spark, table, _WRITERS, recorded)

    committed(spark, table, write)
