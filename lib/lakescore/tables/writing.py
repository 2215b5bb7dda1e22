"""Commits of which each happens once: with a transaction's number, again after a conflict."""

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any

from lakescore.config import Write
from lakescore.errors import BusyError, TableError, root_cause
from lakescore.tables.lock import alone
from lakescore.tables.names import delta_table, identifier, is_path, load, quoted
from lakescore.tables.source import CHANGE, DELETE, HASH, INSERT, REFRESH, RESCORE, UPDATE

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructType

_CONF = "spark.databricks.delta."
_RANGED = ("bigint", "int", "smallint", "tinyint", "string", "date")
# Two writers that meet: the slower one reads again and tries again, after a pause that grows.
_ATTEMPTS = 40
_LONGEST_PAUSE = 8.0
_UNWRITABLE = ("AccessDenied", "Mkdirs failed", "Permission denied", "Read-only file system")
_CONFLICTS = (
    "DELTA_CONCURRENT_APPEND",
    "DELTA_CONCURRENT_DELETE_READ",
    "DELTA_CONCURRENT_DELETE_DELETE",
    "DELTA_CONCURRENT_WRITE",
    "DELTA_METADATA_CHANGED",
    "DELTA_PROTOCOL_CHANGED",
)


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One commit: its transaction (the same one is never done twice), and what history says."""

    app: str
    number: int
    note: Mapping[str, object] = field(default_factory=dict)

    @property
    def metadata(self) -> str:
        """What Delta's history shows as userMetadata."""
        return json.dumps({"app": self.app, "number": self.number, **self.note})


def find_commit(
    spark: "SparkSession", table: str, commit: Commit, *, since: int
) -> dict[str, Any] | None:
    """Return the note of a commit that was made after version `since`; None if it was not."""
    history = delta_table(spark, table).history()
    for row in history.where(history.version > since).select("userMetadata").collect():
        said = json.loads(row[0]) if row[0] and row[0].startswith("{") else {}
        if (said.get("app"), said.get("number")) == (commit.app, commit.number):
            return dict(said)
    return None


def write(
    staged: "DataFrame",
    table: str,
    how: Write,
    commit: Commit,
    *,
    key: Sequence[str],
    ranges: Mapping[str, tuple[Any, Any]],
    results: Sequence[str],
) -> None:
    """Write a staged micro-batch by one commit, again where another writer came between.

    Args:
        staged: the target's columns and `CHANGE`.
        table: the target.
        how: append, merge by the key, or overwrite.
        commit: its transaction, which Delta leaves out where it was done already.
        key: the target's key.
        ranges: the least and the greatest value of key columns in `staged`: other files of the
            target are not read, and writers of other ranges are not in the way.
        results: the columns that scoring makes.

    Raises:
        BusyError: another run of this job did it at the same time.
        TableError: the target cannot be written.
    """
    rows = staged.drop(CHANGE)

    def once() -> None:
        with _transaction(staged.sparkSession, commit):
            if how == "append":
                append(rows, table)
            elif how == "overwrite":
                _save(rows.write.format("delta").mode("overwrite"), table)
            else:
                _merge(staged, table, key=key, ranges=ranges, results=results)

    committed(staged.sparkSession, table, once)


def append(rows: "DataFrame", table: str, **options: str) -> None:
    """Append rows to a table, which is made if it is not there."""
    _save(rows.write.format("delta").mode("append").options(**options), table)


def _save(writer: Any, table: str) -> None:
    if is_path(table):
        writer.save(table)
    else:
        writer.saveAsTable(identifier(table))


def _merge(
    staged: "DataFrame",
    table: str,
    *,
    key: Sequence[str],
    ranges: Mapping[str, tuple[Any, Any]],
    results: Sequence[str],
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
    same_key = [theirs(name) == ours(name) for name in key]
    same_key += [theirs(name).between(*ends) for name, ends in ranges.items()]
    is_current = theirs(HASH).eqNullSafe(ours(HASH))
    merge = delta_table(staged.sparkSession, table).alias("t")
    merge = merge.merge(staged.alias("s"), reduce(lambda a, b: a & b, same_key))
    merge = merge.whenMatchedDelete(change == DELETE)
    if carried:
        merge = merge.whenMatchedUpdate((change == REFRESH) & is_current, assigned(carried))
    merge = merge.whenMatchedUpdate((change == RESCORE) & is_current, assigned(results))
    is_row = change.isin(INSERT, UPDATE)
    merge = merge.whenMatchedUpdate(is_row, assigned(columns))
    merge.whenNotMatchedInsert(is_row, assigned(columns)).execute()


def ranged(schema: "StructType", key: Sequence[str], text: str) -> list[str]:
    """Return the key columns of which a MERGE names the range: Delta's log has theirs."""
    kinds = {each.name: each.dataType.simpleString() for each in schema}
    return [name for name in key if kinds[name] in _RANGED and name != text]


def present(staged: "DataFrame", table: str, key: Sequence[str], ranges: Mapping[str, Any]) -> int:
    """Count the rows of a micro-batch whose key the target has already."""
    from pyspark.sql import functions as F

    spark = staged.sparkSession
    columns = [quoted(name) for name in key]
    there = load(spark, table)
    for name, ends in ranges.items():
        there = there.where(F.col(quoted(name)).between(*ends))
    return staged.select(*columns).join(there.select(*columns), list(key), "left_semi").count()


@contextmanager
def _transaction(spark: "SparkSession", commit: Commit) -> Iterator[None]:
    """Give the next commit of this session its transaction: a MERGE takes it from here only."""
    settings = {
        "write.txnAppId": commit.app,
        "write.txnVersion": str(commit.number),
        "commitInfo.userMetadata": commit.metadata,
    }
    before = {name: spark.conf.get(_CONF + name, None) for name in settings}
    try:
        for name, value in settings.items():
            spark.conf.set(_CONF + name, value)
        yield
    finally:
        for name, old in before.items():
            if old is None:
                spark.conf.unset(_CONF + name)
            else:
                spark.conf.set(_CONF + name, old)


def committed(spark: "SparkSession", table: str, action: Callable[[], None]) -> None:
    """Do what commits to a table, again where another writer came between.

    Raises:
        BusyError: another run of the same job did this at the same time.
        TableError: the table cannot be written, or others were faster every time.
    """

    def once() -> None:
        with alone(spark, table, wait=True):
            action()

    retried(table, once)


def retried(
    table: str,
    action: Callable[[], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
    draw: Callable[[float, float], float] = random.uniform,
) -> None:
    """Do what may conflict with other writers, up to forty times; the pauses grow, and are drawn.

    Raises:
        BusyError: another run of the same job did this at the same time.
        TableError: the table cannot be written, or others were faster every time.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return action()
        except TableError:
            raise
        except Exception as error:  # Spark's, Delta's, and Java's own
            said = str(error)
            if "DELTA_CONCURRENT_TRANSACTION" in said:
                raise BusyError(
                    f"{table}: another run of this job wrote the same micro-batch at this moment; "
                    "it has the rows"
                ) from error
            if not any(sign in said for sign in _CONFLICTS):
                if (known := write_error(table, error)) is not None:
                    raise known from error
                raise
            last = error
        sleep(draw(0, min(_LONGEST_PAUSE, 0.2 * 2**attempt)))
    raise TableError(
        f"{table}: other writers were faster in {_ATTEMPTS} attempts; run the job again, or let "
        "fewer of them write at once"
    ) from last


def write_error(place: str, error: Exception) -> TableError | None:
    """Say why a place cannot be written, in words that quote no row; None if it is not that."""
    said = str(error)
    if "DELTA_INVALID_CHARACTERS_IN_COLUMN_NAMES" in said:
        return TableError(
            f"{place}: the name of one of the source's columns holds a space or one of ,;{{}}()=, "
            "which the target cannot have; leave it out by source.columns"
        )
    if "No space left on device" in said:
        return TableError(f"{place}: the disk is full; free some room and run the job again")
    if "CHECK constraint" in said or "DELTA_NOT_NULL_CONSTRAINT" in said:
        return TableError(
            f"{place}: a constraint of it refuses a row; drop that constraint, or take such rows "
            "out of the source"
        )
    if any(sign in said for sign in _UNWRITABLE):
        return TableError(
            f"{place}: cannot be written ({root_cause(error)}); name a folder or a table that can"
        )
    return None
