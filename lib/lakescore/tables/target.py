"""The target: made with all that describes it, or checked, and who writes it."""

import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakescore.errors import BusyError, TableError, root_cause
from lakescore.tables.changes import CHANGE, DELETE
from lakescore.tables.commits import (
    app_of,
    committed,
    note_of,
    own_transaction,
    set_property,
    write_error,
)
from lakescore.tables.constraints import CHECK
from lakescore.tables.lock import alone
from lakescore.tables.names import (
    describe,
    exists,
    history,
    identifier,
    is_path,
    literal,
    load,
    place,
    quoted,
    version,
)
from lakescore.tables.source import Source
from lakescore.tables.writing import append

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructType

logger = logging.getLogger(__name__)

_WRITER = "lakescore.writer."
_LIMITED = "__CHAR_VARCHAR_TYPE_STRING"
# What Delta keeps the least and the greatest value of, and clusters by; of others, as booleans and
# strings with a collation, it refuses to.
_ORDERED = re.compile(
    r"tinyint|smallint|int|bigint|float|double|decimal\(.*\)|date|timestamp(_ntz)?|string"
)


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A job that writes a target, as the target itself records it: the source, its key and text.

    `query` is the id of the streaming query that appends or merges; None after a snapshot, whose
    source was read wholly at `version`. `snapshot` is the run of one that has begun and not ended.
    """

    source: str
    id: str
    key: tuple[str, ...]
    text: str
    query: str | None = None
    version: int | None = None
    snapshot: str | None = None


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
    properties["delta.dataSkippingStatsColumns"] = ",".join(with_statistics)
    properties["delta.enableDeletionVectors"] = "true"
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


def find_writers(spark: "SparkSession", table: str) -> list[Writer]:
    """Return the jobs that write a target, as its properties have them."""
    properties = describe(spark, table).properties
    found = (json.loads(properties[name]) for name in properties if name.startswith(_WRITER))
    return [Writer(**each | {"key": tuple(each["key"])}) for each in found]


def recorded(writers: Sequence[Writer], source: Source) -> Writer | None:
    """Return what a target has recorded of a source: the same table, or one of its name."""
    for each in writers:
        if each.id == source.id:
            return each
    for each in writers:
        if place(each.source) == place(source.table):
            return each
    return None


def others(writers: Sequence[Writer], source: Source) -> list[Writer]:
    """Return the writers of all other sources."""
    mine = place(source.table)
    return [each for each in writers if each.id != source.id and place(each.source) != mine]


def beside(
    spark: "SparkSession",
    todo: "DataFrame",
    other: Writer,
    source: Source,
    *,
    table: str,
    key: Sequence[str],
    again: bool,
) -> "DataFrame":
    """Return changes without the deletions of what came into a target from another source.

    Where that one cannot be read there are none, if what is to go is found `again` by a later run.

    Raises:
        TableError: the other source has a key of the other changes, too; or it cannot be read.
    """
    from pyspark.sql import functions as F

    is_delete = F.col(CHANGE) == DELETE
    kept = todo.where(~is_delete)
    try:
        theirs = _keys_of(spark, other, table, key)
    except TableError as error:
        if not again:
            raise
        logger.warning("%s; what was deleted from %s stays in it meanwhile", error, source.table)
        return kept
    if both := kept.join(theirs, [*key], "left_semi").count():
        raise TableError(
            f"{source.table}: {both:,} keys ({', '.join(key)}) are in {other.source}, too, "
            f"which is also scored into {table}; name another target.table for one of them"
        )
    gone = todo.where(is_delete).join(theirs, [*key], "left_anti")
    return kept.unionByName(gone)


def not_taken_over(
    spark: "SparkSession", gone: "DataFrame", other: Writer, table: str, key: Sequence[str]
) -> "DataFrame":
    """Return deletions without the keys that a snapshot of another source has taken for its own.

    It has found them in the target, where they stay. A stream of that source would have refused
    them, and brings its rows once those of the same key have left.

    Raises:
        TableError: the other source cannot be read.
    """
    if other.version is None:
        return gone
    return gone.join(_keys_of(spark, other, table, key, version=other.version), [*key], "left_anti")


def _keys_of(
    spark: "SparkSession", other: Writer, table: str, key: Sequence[str], version: int | None = None
) -> "DataFrame":
    """Return the keys of another source of a target, at a version if that can still be read.

    Raises:
        TableError: the source cannot be read.
    """
    from pyspark.errors import AnalysisException

    try:
        if version is not None:
            with suppress(TableError):
                return load(spark, other.source, version=version).select(*map(quoted, key))
        return load(spark, other.source).select(*map(quoted, key))
    except (TableError, AnalysisException) as error:
        raise TableError(
            f"{table}: holds rows of {other.source} too, which cannot be read, so that it is not "
            "known which rows are its own; let this job read it, or, if it is gone for good and "
            f"its rows are to go with the next snapshot, ALTER TABLE {identifier(table)} UNSET "
            f"TBLPROPERTIES ({literal(_WRITER + other.id)})"
        ) from error


def register(
    spark: "SparkSession", table: str, writer: Writer, *, guard: Callable[[], None]
) -> None:
    """Record a job in the target, in place of what was recorded of its source before.

    A source that was made anew has another id, and its older record stays beside the new one,
    which is the one that is found. `guard` is called before each attempt; it raises where another
    run was faster.
    """

    def write() -> None:
        guard()
        note = {"source": writer.id}
        set_property(spark, table, _WRITER + writer.id, json.dumps(asdict(writer)), note)

    committed(spark, table, write)


def guard(
    spark: "SparkSession", table: str, source: Source, *writers: Writer | None, alone: bool = False
) -> Callable[[], None]:
    """Return a check that a target has recorded one of some writers of a source, and no other.

    With `alone` no other source may have a writer either. The check raises `BusyError`.
    """

    def check() -> None:
        found = find_writers(spark, table)
        if alone and others(found, source):
            raise BusyError(f"{table}: another job has begun to write to it; run it again")
        if recorded(found, source) not in writers:
            raise BusyError(
                f"{table}: another run of this job has begun to score {source.table} into it; what "
                "is not in the target yet, the next run scores"
            )

    return check


@dataclass(frozen=True, slots=True)
class Trace:
    """What the history of a target says of a stream.

    Attributes:
        number: the micro-batch that it committed last; None where it has committed none.
        is_restored: whether the target was restored to an older version, or replaced by a clone,
            since then or since the stream was recorded.
        rows_read: how many rows of the source it had read by then, if that was known.
    """

    number: int | None = None
    is_restored: bool = False
    rows_read: int | None = None


def trace(spark: "SparkSession", table: str, query: str, source: Source) -> Trace:
    """Return what the history of a target says of a streaming query over a source."""
    for limit in (20, None):  # the last commits tell it, but for a target of many writers
        commits = history(spark, table, limit)
        rows = commits.select("version", "operation", "userMetadata").collect()
        is_restored = False
        for row in sorted(rows, key=lambda row: row.version, reverse=True):
            note = note_of(row.userMetadata)
            if note.get("app") == app_of(query):
                return Trace(note["number"], is_restored, note.get("rows_read"))
            if note.get("source") == source.id:
                return Trace(None, is_restored)
            is_restored |= row.operation in ("RESTORE", "CLONE")
    return Trace(None, is_restored)


def was_written(
    spark: "SparkSession", table: str, writer: Writer, *, since: int, registered: bool
) -> bool:
    """Tell whether a job has written rows to a target after version `since`.

    With `registered`, or was recorded in it anew.
    """
    if (latest := version(spark, table)) == since:
        return False
    apps = [app_of(each) for each in (writer.query, writer.snapshot) if each is not None]
    for limit in (latest - since + 1, None):  # unless others commit meanwhile
        rows = history(spark, table, limit).select("version", "userMetadata").collect()
        if any(row.version <= since for row in rows):
            break
    notes = [note_of(row.userMetadata) for row in rows if row.version > since]
    return any(
        each.get("app") in apps or (registered and each.get("source") == writer.id)
        for each in notes
    )
