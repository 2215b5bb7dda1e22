"""Who writes a target, as the target records it: whose its rows are, and who is at work."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lakescore.errors import BusyError, TableError
from lakescore.tables.changes import CHANGE, DELETE
from lakescore.tables.commits import (
    app_of,
    committed,
    note_of,
    set_property,
    unset_property,
    unset_statement,
)
from lakescore.tables.names import (
    describe,
    history,
    load,
    place,
    quoted,
)
from lakescore.tables.source import Source

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, Row, SparkSession

_WRITER = "lakescore.writer."
_PUT_BACK = ("RESTORE", "CLONE")
_FEW = 20  # commits, of which a question is mostly about the last


class UnreadError(TableError):
    """Another source of the target cannot be read, so that it is not known which rows are its."""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A job that writes a target, as the target itself records it: the source, its key and text.

    `query` is the id of the streaming query that appends or merges; None after a snapshot, whose
    source was read wholly at `version`. `snapshot` is the run of one that has begun and not ended.
    `withheld` says that the last one could not tell which rows of the target are to go.
    """

    source: str
    id: str
    key: tuple[str, ...]
    text: str
    query: str | None = None
    version: int | None = None
    snapshot: str | None = None
    withheld: bool = False


def find(spark: "SparkSession", table: str) -> list[Writer]:
    """Return the jobs that write a target, as it has recorded them."""
    return of(describe(spark, table).properties)


def of(properties: Mapping[str, str]) -> list[Writer]:
    """Return the jobs that write a target of these properties."""
    found = (json.loads(properties[name]) for name in properties if name.startswith(_WRITER))
    return [Writer(**each | {"key": tuple(each["key"])}) for each in found]


def mine(spark: "SparkSession", writers: Sequence[Writer], source: Source) -> list[Writer]:
    """Return the writers of a source, by its id, and of what was there before under its names.

    Where it has had another name itself, what was under this one may have moved, too.
    """
    own = [each for each in writers if each.id == source.id]
    if any(place(each.source) != place(source.table) for each in own):
        return own
    return own + [each for each in writers if each not in own and _leads_to(spark, each, source)]


def recorded(spark: "SparkSession", writers: Sequence[Writer], source: Source) -> Writer | None:
    """Return what a target has recorded of a source, or of what was there before in its place."""
    own = [each for each in writers if each.id == source.id]  # of others nothing is asked then
    return next(iter(own or mine(spark, writers, source)), None)


def others(spark: "SparkSession", writers: Sequence[Writer], source: Source) -> list[Writer]:
    """Return the writers of all other sources."""
    own = mine(spark, writers, source)
    return [each for each in writers if each not in own]


def _leads_to(spark: "SparkSession", writer: Writer, source: Source) -> bool:
    """Tell whether the name that a writer has recorded is one of a source by now."""
    if place(writer.source) == place(source.table):
        return True
    try:
        return describe(spark, writer.source).id == source.id
    except TableError:  # it is not there, or not for this job to see
        return False


def forgetting(table: str, writer: Writer) -> str:
    """Return the SQL that lets a target forget a writer."""
    return unset_statement(table, _WRITER + writer.id)


def without_keys_of(
    spark: "SparkSession",
    todo: "DataFrame",
    other: Writer,
    source: Source,
    *,
    table: str,
    key: Sequence[str],
) -> "DataFrame":
    """Return changes without the deletions of keys that another source of the target has.

    Raises:
        TableError: the other source has a key of the other changes, too.
        UnreadError: it cannot be read.
    """
    from pyspark.errors import AnalysisException
    from pyspark.sql import functions as F

    is_delete = F.col(CHANGE) == DELETE
    kept = todo.where(~is_delete)
    try:
        if _leads_to(spark, other, source):
            raise TableError(f"{other.source}: leads to {source.table} by now")
        theirs = load(spark, other.source).select(*map(quoted, key))
    except (TableError, AnalysisException) as error:
        raise UnreadError(
            f"{table}: holds rows of {other.source} too, which cannot be read (or has another name "
            f"by now), so that it is not known which are of {source.table}; let this job read it "
            "(or run the other one first), or, if it is gone for good and its rows are to go with "
            f"the next snapshot, {forgetting(table, other)}"
        ) from error
    if both := kept.join(theirs, [*key], "left_semi").count():
        raise TableError(
            f"{source.table}: {both:,} keys ({', '.join(key)}) are in {other.source}, too, "
            f"which is also scored into {table}; name another target.table for one of them, or, if "
            f"{source.table} has taken the place of that one, {forgetting(table, other)}"
        )
    gone = todo.where(is_delete).join(theirs, [*key], "left_anti")
    return kept.unionByName(gone)


def register(
    spark: "SparkSession",
    table: str,
    writer: Writer,
    *,
    before: Sequence[Writer],
    guard: Callable[[], None],
) -> None:
    """Record a job in the target, in place of what was recorded of its source `before`.

    A source that was made anew has another id: what was recorded of the former one goes, or that
    one, if it ever came back, would be read on from where it was. `guard` is called before each
    attempt; it raises where another run was faster.
    """

    def write() -> None:
        guard()
        note = {"source": writer.id}
        set_property(spark, table, _WRITER + writer.id, json.dumps(asdict(writer)), note)

    committed(spark, table, write)
    for former in {each.id for each in before} - {writer.id}:
        name = _WRITER + former
        committed(spark, table, lambda: unset_property(spark, table, name))  # noqa: B023


def guard(
    spark: "SparkSession", table: str, source: Source, *writers: Writer | None, alone: bool = False
) -> Callable[[], None]:
    """Return a check that a target has recorded one of some writers of a source, and no other.

    With `alone` no other source may have a writer either. The check raises `BusyError`.
    """

    def check() -> None:
        found = find(spark, table)
        if alone and others(spark, found, source):
            raise BusyError(f"{table}: another job has begun to write to it; run it again")
        if recorded(spark, found, source) not in writers:
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
            since then, since the stream was recorded, or while the run of that commit was at work.
        rows_read: how many rows of the source it had read by then, if that was known.
    """

    number: int | None = None
    is_restored: bool = False
    rows_read: int | None = None


def trace(spark: "SparkSession", table: str, query: str, source: Source) -> Trace:
    """Return what the history of a target says of a streaming query over a source."""
    for limit in (_FEW, None):  # the last commits tell it, but for a target of many writers
        rows = _history(spark, table, limit)
        is_restored = False
        for row in sorted(rows, key=lambda row: row.version, reverse=True):
            note = note_of(row.userMetadata)
            if note.get("app") == app_of(query):
                during = _commits(spark, table, note.get("since", row.version), among=rows)
                is_restored |= any(each.operation in _PUT_BACK for each in during)
                return Trace(note["number"], is_restored, note.get("rows_read"))
            if note.get("source") == source.id:
                return Trace(None, is_restored)
            is_restored |= row.operation in _PUT_BACK
    return Trace(None, is_restored)


def was_changed(
    spark: "SparkSession", table: str, writer: Writer | None, *, since: int, registered: bool
) -> bool:
    """Tell whether a job has written rows to a target after version `since`, or it was restored.

    With `registered`, or the job was recorded in it anew.
    """
    apps = [app_of(each) for each in (writer.query, writer.snapshot) if each] if writer else []
    commits = _commits(spark, table, since)
    notes = [note_of(row.userMetadata) for row in commits]
    return any(row.operation in _PUT_BACK for row in commits) or any(
        each.get("app") in apps
        or (registered and writer is not None and each.get("source") == writer.id)
        for each in notes
    )


def _commits(
    spark: "SparkSession", table: str, since: int, *, among: "Sequence[Row]" = ()
) -> "list[Row]":
    """Return what the history of a table says of its commits after version `since`.

    `among` is the latest of it, as far as that was read.
    """
    rows, limit = list(among), _FEW
    while not any(row.version <= since for row in rows):
        if rows:  # others may commit meanwhile
            limit = max(row.version for row in rows) - since + 1
        rows = _history(spark, table, limit)
        if len(rows) < limit:
            break
    return [row for row in rows if row.version > since]


def _history(spark: "SparkSession", table: str, limit: int | None) -> "list[Row]":
    return history(spark, table, limit).select("version", "operation", "userMetadata").collect()
