"""The target: made with all that describes it, or checked."""

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakescore.errors import TableError, root_cause
from lakescore.tables.commits import committed, own_transaction, write_error
from lakescore.tables.constraints import CHECK
from lakescore.tables.lock import alone
from lakescore.tables.names import exists, identifier, is_path, literal, load, quoted
from lakescore.tables.writing import append

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.types import DataType, StructType

logger = logging.getLogger(__name__)

_LOOKS = 50
_STATISTICS = "delta.dataSkippingStatsColumns"
_LIMITED = "__CHAR_VARCHAR_TYPE_STRING"
# What Delta keeps the least and the greatest value of, and clusters by; of others, as booleans and
# strings with a collation, it refuses to.
_ORDERED = re.compile(
    r"tinyint|smallint|int|bigint|float|double|decimal\(.*\)|date|timestamp(_ntz)?|string"
)


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
        for _ in range(_LOOKS):  # Delta may have an empty log in its cache for a moment
            if exists(spark, table):
                break
            time.sleep(0.1)
    there = load(spark, table).schema
    missing = _check_columns(there, schema, table, evolve=evolve)
    if missing:
        # Of rows, even of none, Delta wants the columns that may not be null.
        required = [each for each in there if not each.nullable]
        added = spark.createDataFrame([], type(schema)([*required, *missing]))
        once = own_transaction("columns")
        committed(spark, table, lambda: append(added, table, mergeSchema="true", **once))
        logger.warning(
            "%s: %s new, and null in rows that are there already; one run with --set "
            "source.changes=snapshot fills a column of the source, rescore --stale one of a task",
            table,
            ", ".join(each.name for each in missing) + (" are" if missing[1:] else " is"),
        )


def warn_of_statistics(
    table: str, columns: Sequence[str], properties: Mapping[str, str], *, text: str
) -> None:
    """Say of a target that was made by somebody else that its log keeps the beginning of texts."""
    if (named := properties.get(_STATISTICS)) is not None:
        indexed = [name.strip().strip("`") for name in named.split(",")]
    else:
        first = int(properties.get("delta.dataSkippingNumIndexedCols", 32))
        indexed = list(columns if first < 0 else columns[:first])
    if text in indexed and text in columns:
        logger.warning(
            "%s: Delta keeps the beginning of texts in its log, as the least and the greatest %s "
            "of each file, where purge does not reach; for files that are yet to come its property "
            "%s ends that, if it names other columns alone",
            table,
            text,
            _STATISTICS,
        )


def _create(
    spark: "SparkSession",
    table: str,
    schema: "StructType",
    *,
    key: Sequence[str],
    text: str,
    constraints: Mapping[str, str],
) -> None:
    if exists(spark, table):  # another job was faster
        return
    _check_room(table)
    types = {each.name: each.dataType.simpleString() for each in schema}
    ordered = [name for name in types if name != text and _ORDERED.fullmatch(types[name])]
    with_statistics = [
        quoted(name)
        for name in ordered
        if types[name] != "string" or name in key or name == "run_id"
    ]
    columns = [
        f"{quoted(each.name)} {_ddl(each.dataType)}"
        + (f" COMMENT {literal(comment)}" if (comment := each.metadata.get("comment")) else "")
        for each in schema
    ]
    properties = {f"{CHECK}{name}": expression for name, expression in constraints.items()}
    properties[_STATISTICS] = ",".join(with_statistics)
    properties["delta.enableDeletionVectors"] = "true"
    # Delta's default, but not Databricks': there two writers may bring the same key at once.
    properties["delta.isolationLevel"] = "Serializable"
    said = ", ".join(f"{literal(name)} = {literal(value)}" for name, value in properties.items())
    clustered = [name for name in key if name in ordered]
    by = f" CLUSTER BY ({', '.join(map(quoted, clustered[:4]))})" if clustered else ""
    try:
        spark.sql(
            f"CREATE TABLE IF NOT EXISTS {identifier(table)} ({', '.join(columns)}) USING delta"
            f"{by} TBLPROPERTIES ({said})"
        )
    except Exception as error:  # Spark's, Delta's, and Java's own
        if not exists(spark, table):  # else another job was faster
            reason = f"{table}: cannot be made ({root_cause(error)}); name another target.table"
            raise write_error(table, error) or TableError(reason) from error


def _ddl(kind: "DataType") -> str:
    """Return a type for SQL, the names of its fields in quotes."""
    from pyspark.sql.types import ArrayType, MapType, StructType

    if isinstance(kind, ArrayType):
        return f"array<{_ddl(kind.elementType)}>"
    if isinstance(kind, MapType):
        return f"map<{_ddl(kind.keyType)}, {_ddl(kind.valueType)}>"
    if isinstance(kind, StructType):
        fields = (f"{quoted(each.name)}: {_ddl(each.dataType)}" for each in kind)
        return f"struct<{', '.join(fields)}>"
    return kind.simpleString()


def _check_columns(
    there: "StructType", ours: "StructType", table: str, *, evolve: bool
) -> list[Any]:
    """Return the fields that the target has to gain."""
    theirs = {
        # Of varchar(n) Spark says string, but refuses longer ones, and logs them.
        each.name: each.metadata.get(_LIMITED, each.dataType.simpleString())
        for each in there
    }
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
