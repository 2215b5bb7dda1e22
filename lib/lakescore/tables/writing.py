"""How rows get into the target: appended, merged by the key, or in place of all that is there."""

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from lakescore.config import Write
from lakescore.errors import RefusedRowsError
from lakescore.tables.changes import (
    CHANGE,
    DELETE,
    HASH,
    INSERT,
    REFRESH,
    RESCORE,
    UPDATE,
    same_key,
)
from lakescore.tables.commits import PRESENT, Commit, committed, with_settings
from lakescore.tables.names import absolute, identifier, is_path, literal, load, quoted
from lakescore.tables.source import UNIQUE

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import StructType

_DOUBLE = "DELTA_MULTIPLE_SOURCE_ROW_MATCHING_TARGET_ROW_IN_MERGE"
_EPOCH = date(1970, 1, 1).toordinal()
_UNSAID = re.compile(r"[\ufffd$'\\]")
_RANGED = ("bigint", "int", "smallint", "tinyint", "string", "date")


def write(
    staged: "DataFrame",
    table: str,
    how: Write,
    commit: Commit,
    *,
    source: str,
    key: Sequence[str],
    ranges: Mapping[str, tuple[str, str]],
    results: Sequence[str],
    outdated: Sequence[str],
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
        ranges: the least and the greatest value of key columns in `staged`, as SQL: other files of
            the target are not read.
        results: the columns that scoring makes.
        outdated: the target's columns whose value would not belong to a new score: null
            where it scores.
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
            with with_settings(spark, commit.settings):
                if how == "append":
                    append(_if_absent(rows, table, key, ranges), table)
                elif how == "overwrite":
                    _overwrite(rows, table)
                else:
                    _merge(
                        staged, table, key=key, ranges=ranges, results=results, outdated=outdated
                    )
        except Exception as error:  # Spark's and Java's own
            if _DOUBLE in str(error):  # the source's keys were checked
                double = _count_double(staged, key)
                raise RefusedRowsError(
                    f"{table}: has {double:,} keys ({', '.join(key)}) more than once, which no run "
                    "writes; delete all rows but one of each and run again"
                ) from None
            if PRESENT in str(error) and (present := _count_present(staged, table, key, ranges)):
                raise RefusedRowsError(
                    f"{source}: {present} that {table} has already; {UNIQUE}"
                ) from None
            raise  # where that key has left again, as a conflict

    committed(spark, table, once)


def _overwrite(rows: "DataFrame", table: str) -> None:
    """Put rows in the place of all that a table holds."""
    from pyspark.sql import functions as F

    # All of it, in a session that replaces only the partitions at hand, too.
    static = {"partitionOverwriteMode": "static"}
    if is_path(table):
        rows.write.format("delta").mode("overwrite").options(**static).save(absolute(table))
    else:  # saveAsTable would make a Delta table anew, or refuse: Spark 3.5
        rows.writeTo(identifier(table)).options(**static).overwrite(F.lit(True))


def append(rows: "DataFrame", table: str, **options: str) -> None:
    """Append rows to a table, which is made if it is not there."""
    writer = rows.write.format("delta").mode("append").options(**options)
    if is_path(table):
        writer.save(absolute(table))
    else:
        writer.saveAsTable(identifier(table))


def _present(
    rows: "DataFrame", table: str, key: Sequence[str], ranges: Mapping[str, tuple[str, str]]
) -> "DataFrame":
    """Return the keys of the target that rows have, too."""
    there = within(load(rows.sparkSession, table), ranges)
    keys = [quoted(name) for name in key]
    return there.select(*keys).join(rows.select(*keys), [*key], "left_semi")


def _if_absent(
    rows: "DataFrame", table: str, key: Sequence[str], ranges: Mapping[str, tuple[str, str]]
) -> "DataFrame":
    """Return rows of which none is read where the target has a key of theirs: an error is."""
    from pyspark.sql import functions as F

    present = _present(rows, table, key, ranges).withColumn(CHANGE, F.lit(True))
    joined = rows.alias("s").join(F.broadcast(present).alias("t"), same_key(key), "left")
    is_absent = F.assert_true(F.col(f"t.{CHANGE}").isNull(), F.lit(PRESENT)).isNull()
    return joined.where(is_absent).select("s.*")


def _count_double(rows: "DataFrame", key: Sequence[str]) -> int:
    """Count the keys that several rows have."""
    from pyspark.sql import functions as F

    times = rows.groupBy(*map(quoted, key)).agg(F.count(F.lit(1)).alias(CHANGE))
    return times.where(F.col(CHANGE) > 1).count()


def _count_present(
    staged: "DataFrame", table: str, key: Sequence[str], ranges: Mapping[str, tuple[str, str]]
) -> str | None:
    """Say how many new rows have a key of the target; None where none has."""
    from pyspark.sql import functions as F

    new = staged.where(F.col(CHANGE) == INSERT)
    found = _present(new, table, key, ranges).count()
    if not found:
        return None
    return f"{found:,} of {new.count():,} new rows have a key ({', '.join(key)})"


def _merge(
    staged: "DataFrame",
    table: str,
    *,
    key: Sequence[str],
    ranges: Mapping[str, tuple[str, str]],
    results: Sequence[str],
    outdated: Sequence[str],
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
    is_same += _between(ranges, "t.")
    is_current = f"t.{HASH} <=> s.{HASH}"
    without = dict.fromkeys(outdated, "NULL")
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


def ranged(schema: "StructType", key: Sequence[str], text: str) -> "dict[str, Column]":
    """Return the key columns whose range a MERGE names, as what has a least and a greatest value.

    Delta's log has theirs. A date is a number of days: Python has none before the year 1 or after
    9999.
    """
    from pyspark.sql import functions as F

    kinds = {each.name: each.dataType.simpleString() for each in schema}
    return {
        name: F.unix_date(quoted(name)) if kinds[name] == "date" else F.col(quoted(name))
        for name in key
        if kinds[name] in _RANGED and name != text
    }


def ranges(ends: Mapping[str, Sequence[Any]], schema: "StructType") -> dict[str, tuple[str, str]]:
    """Return the ranges of key columns as SQL, from least and greatest values of what is `ranged`.

    A column is left out where its ends cannot be said: where there are none, where a text is not
    UTF-8, which Python has in another order than Spark, or where how SQL is to have it depends on
    the session's settings.
    """
    found = {}
    for name, values in ends.items():
        known = [value for value in values if value is not None]
        if schema[name].dataType.simpleString() == "date":
            try:
                known = [date.fromordinal(_EPOCH + days) for days in known]
            except (OverflowError, ValueError):
                continue
        if known and not any(_UNSAID.search(str(value)) for value in known):
            found[name] = (literal(min(known)), literal(max(known)))
    return found


def within(rows: "DataFrame", ranges: Mapping[str, tuple[str, str]]) -> "DataFrame":
    """Return the rows whose keys are in some ranges."""
    from pyspark.sql import functions as F

    for condition in _between(ranges):
        rows = rows.where(F.expr(condition))
    return rows


def _between(ranges: Mapping[str, tuple[str, str]], side: str = "") -> list[str]:
    return [
        f"{side}{quoted(name)} BETWEEN {least} AND {greatest}"
        for name, (least, greatest) in ranges.items()
    ]
