"""How rows get into the target: appended, merged by the key, or in place of all that is there."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from lakescore.config import Write
from lakescore.errors import RefusedRowsError
from lakescore.tables.changes import CHANGE, DELETE, HASH, INSERT, REFRESH, RESCORE, UPDATE
from lakescore.tables.commits import PRESENT, Commit, committed, session
from lakescore.tables.names import delta_table, identifier, is_path, load, quoted
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
                    _save(rows.write.format("delta").mode("overwrite"), table)
                else:
                    _merge(staged, table, key=key, ranges=ranges, results=results, dropped=dropped)
        except Exception as error:  # Spark's and Java's own
            if PRESENT in str(error) and (present := _count_present(staged, table, key, ranges)):
                raise RefusedRowsError(
                    f"{source}: {present} that {table} has already; {UNIQUE}"
                ) from None
            raise  # where that key has left again, as a conflict

    committed(spark, table, once)


def append(rows: "DataFrame", table: str, **options: str) -> None:
    """Append rows to a table, which is made if it is not there."""
    _save(rows.write.format("delta").mode("append").options(**options), table)


def _save(writer: Any, table: str) -> None:
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
    from pyspark.sql import functions as F

    def theirs(name: str) -> "Column":
        return F.col(f"t.{quoted(name)}")

    def ours(name: str) -> "Column":
        return F.col(f"s.{quoted(name)}")

    def assigned(names: Sequence[str]) -> dict[str, Any]:
        return {quoted(name): ours(name) for name in names}

    change = ours(CHANGE)
    columns = [name for name in staged.columns if name != CHANGE]
    carried = [name for name in columns if name not in (*key, *results, HASH)]
    is_same = _same(key)
    for name, ends in ranges.items():
        is_same &= theirs(name).between(*ends)
    is_current = theirs(HASH).eqNullSafe(ours(HASH))
    without = {quoted(name): F.lit(None) for name in dropped}
    refused = {quoted(HASH): F.raise_error(F.lit(PRESENT)).cast("bigint")}
    merge = delta_table(staged.sparkSession, table).alias("t")
    merge = merge.merge(staged.alias("s"), is_same)
    merge = merge.whenMatchedDelete(change == DELETE)
    if carried:
        merge = merge.whenMatchedUpdate((change == REFRESH) & is_current, assigned(carried))
    merge = merge.whenMatchedUpdate((change == RESCORE) & is_current, assigned(results) | without)
    merge = merge.whenMatchedUpdate(change == INSERT, refused)
    merge = merge.whenMatchedUpdate(change == UPDATE, assigned(columns) | without)
    merge.whenNotMatchedInsert(change.isin(INSERT, UPDATE), assigned(columns)).execute()


def ranged(schema: "StructType", key: Sequence[str], text: str) -> list[str]:
    """Return the key columns of which a MERGE names the range: Delta's log has theirs."""
    kinds = {each.name: each.dataType.simpleString() for each in schema}
    return [name for name in key if kinds[name] in _RANGED and name != text]
