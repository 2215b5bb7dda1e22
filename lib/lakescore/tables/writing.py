"""How rows get into the target: appended, merged by the key, or in place of all that is there."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from lakescore.config import Write
from lakescore.errors import RefusedRowsError
from lakescore.tables.changes import CHANGE, DELETE, HASH, INSERT, REFRESH, RESCORE, UPDATE
from lakescore.tables.commits import PRESENT, Commit, committed, session
from lakescore.tables.names import identifier, is_path, literal, load, quoted
from lakescore.tables.source import UNIQUE

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import StructType

_RANGED = ("bigint", "int", "smallint", "tinyint", "string", "date")


def write(
    staged: "DataFrame",
    table: str,
    how: Write,
    commit: Commit,
    *,
    source: str,
    key: Sequence[str],
    ranges: Mapping[str, tuple[Any, Any]],
    results: Sequence[str],
    dropped: Sequence[str],
    guard: Callable[[], None],
) -> None:
    """Write a staged micro-batch by one commit, again where another writer came between.

    That new rows have new keys is seen to within the commit: what others commit meanwhile is a
    conflict to Delta, as the commit has read the target.

    Args:
        staged: the target's columns and `CHANGE`.
        table: the target.
        how: append, merge by the key, or overwrite.
        commit: its transaction, which Delta leaves out where it was done already.
        source: the table that the rows are of.
        key: the target's key.
        ranges: the least and the greatest value of key columns in `staged`: other files of the
            target are not read.
        results: the columns that scoring makes.
        dropped: the target's columns of tasks that the job has not: null where it scores.
        guard: is called before each attempt; it raises where this run is not to write.

    Raises:
        BusyError: another run of this job did it at the same time.
        RefusedRowsError: the target has the key of a new row already.
        TableError: the target cannot be written.
    """
    rows, spark = staged.drop(CHANGE), staged.sparkSession

    def once() -> None:
        guard()
        try:
            with session(spark, commit.settings):
                if how == "append":
                    append(_if_absent(rows, table, key, ranges), table)
                elif how == "overwrite":
                    _overwrite(rows, table)
                else:
                    _merge(staged, table, key=key, ranges=ranges, results=results, dropped=dropped)
        except Exception as error:  # Spark's and Java's own
            if PRESENT in str(error) and (present := _count_present(staged, table, key, ranges)):
                raise RefusedRowsError(
                    f"{source}: {present} that {table} has already; {UNIQUE}"
                ) from None
            raise  # where that key has left again, as a conflict

    committed(spark, table, once)


def _overwrite(rows: "DataFrame", table: str) -> None:
    """Put rows in the place of all that a table holds."""
    from pyspark.sql import functions as F

    if is_path(table):
        rows.write.format("delta").mode("overwrite").save(table)
    else:  # saveAsTable would make a Delta table anew, or refuse: Spark 3.5
        rows.writeTo(identifier(table)).overwrite(F.lit(True))


def append(rows: "DataFrame", table: str, **options: str) -> None:
    """Append rows to a table, which is made if it is not there."""
    writer = rows.write.format("delta").mode("append").options(**options)
    if is_path(table):
        writer.save(table)
    else:
        writer.saveAsTable(identifier(table))


def _present(
    rows: "DataFrame", table: str, key: Sequence[str], ranges: Mapping[str, tuple[Any, Any]]
) -> "DataFrame":
    """Return the keys of the target that rows have, too."""
    from pyspark.sql import functions as F

    there = load(rows.sparkSession, table)
    for name, ends in ranges.items():
        there = there.where(F.col(quoted(name)).between(*ends))
    keys = [quoted(name) for name in key]
    return there.select(*keys).join(rows.select(*keys), [*key], "left_semi")


def _if_absent(
    rows: "DataFrame", table: str, key: Sequence[str], ranges: Mapping[str, tuple[Any, Any]]
) -> "DataFrame":
    """Return rows of which none is read where the target has a key of theirs: an error is."""
    from pyspark.sql import functions as F

    present = _present(rows, table, key, ranges).withColumn(CHANGE, F.lit(True))
    joined = rows.alias("s").join(F.broadcast(present).alias("t"), _same(key), "left")
    is_absent = F.assert_true(F.col(f"t.{CHANGE}").isNull(), F.lit(PRESENT)).isNull()
    return joined.where(is_absent).select("s.*")


def _count_present(
    staged: "DataFrame", table: str, key: Sequence[str], ranges: Mapping[str, tuple[Any, Any]]
) -> str | None:
    """Say how many new rows have a key of the target; None where none has."""
    from pyspark.sql import functions as F

    new = staged.where(F.col(CHANGE) == INSERT)
    found = _present(new, table, key, ranges).count()
    if not found:
        return None
    return f"{found:,} of {new.count():,} new rows have a key ({', '.join(key)})"


def _same(key: Sequence[str]) -> "Column":
    """Tell rows `s` and `t` of the same key."""
    from pyspark.sql import functions as F

    pairs = (F.col(f"t.{quoted(name)}") == F.col(f"s.{quoted(name)}") for name in key)
    return reduce(lambda a, b: a & b, pairs)


def _merge(
    staged: "DataFrame",
    table: str,
    *,
    key: Sequence[str],
    ranges: Mapping[str, tuple[Any, Any]],
    results: Sequence[str],
    dropped: Sequence[str],
) -> None:
    """Do a MERGE by SQL, which Spark Connect has, too."""

    def is_change(change: str) -> str:
        return f"s.{CHANGE} = {literal(change)}"

    def updated(condition: str, names: Sequence[str], more: Mapping[str, str] = {}) -> str:
        values = {name: f"s.{quoted(name)}" for name in names} | dict(more)
        said = ", ".join(f"t.{quoted(name)} = {value}" for name, value in values.items())
        return f"WHEN MATCHED AND {condition} THEN UPDATE SET {said}"

    columns = [name for name in staged.columns if name != CHANGE]
    carried = [name for name in columns if name not in (*key, *results, HASH)]
    is_same = [f"t.{quoted(name)} = s.{quoted(name)}" for name in key]
    is_same += [
        f"t.{quoted(name)} BETWEEN {literal(least)} AND {literal(greatest)}"
        for name, (least, greatest) in ranges.items()
    ]
    is_current = f"t.{HASH} <=> s.{HASH}"
    without = dict.fromkeys(dropped, "NULL")
    refused = {HASH: f"CAST(raise_error({literal(PRESENT)}) AS bigint)"}
    names = ", ".join(map(quoted, columns))
    values = ", ".join(f"s.{quoted(name)}" for name in columns)
    view = f"lakescore_{uuid.uuid4().hex}"
    clauses = [
        f"MERGE INTO {identifier(table)} t USING {view} s ON {' AND '.join(is_same)}",
        f"WHEN MATCHED AND {is_change(DELETE)} THEN DELETE",
        *([updated(f"{is_change(REFRESH)} AND {is_current}", carried)] if carried else []),
        updated(f"{is_change(RESCORE)} AND {is_current}", results, without),
        updated(is_change(INSERT), [], refused),
        updated(is_change(UPDATE), columns, without),
        f"WHEN NOT MATCHED AND ({is_change(INSERT)} OR {is_change(UPDATE)})"
        f" THEN INSERT ({names}) VALUES ({values})",
    ]
    spark = staged.sparkSession
    staged.createOrReplaceTempView(view)
    try:
        spark.sql("\n".join(clauses))
    finally:
        spark.catalog.dropTempView(view)


def ranged(schema: "StructType", key: Sequence[str], text: str) -> list[str]:
    """Return the key columns of which a MERGE names the range: Delta's log has theirs."""
    kinds = {each.name: each.dataType.simpleString() for each in schema}
    return [name for name in key if kinds[name] in _RANGED and name != text]
