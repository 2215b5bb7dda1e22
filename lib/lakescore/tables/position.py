"""Where a stream over a source goes on, by what the target and the checkpoint remember."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from posixpath import basename
from typing import TYPE_CHECKING

from lakescore.errors import BusyError, TableError
from lakescore.tables import writers
from lakescore.tables.folders import folders_in, lines, remove
from lakescore.tables.names import version as latest
from lakescore.tables.source import RECOVER, Source, damaged
from lakescore.tables.stream import Offset
from lakescore.tables.writers import Trace, Writer, recorded, trace

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True, slots=True)
class Position:
    """Where a stream is.

    Attributes:
        folder: its checkpoint.
        starting_version: the version that it begins with if it is new.
        last: what it committed last; None where the target's history does not reach so far back.
    """

    folder: str
    starting_version: int | None
    last: Trace | None = field(default_factory=Trace)


def check_writer(writer: Writer, job: Writer, target: str) -> None:
    """Check that a target's rows are of the key and the text column that a job has.

    Raises:
        TableError: they are of others.
    """
    for name, before, now in (
        ("key", ", ".join(writer.key), ", ".join(job.key)),
        ("text", writer.text, job.text),
    ):
        if before != now:
            raise TableError(
                f"{target}: rows of {job.source} were written by source.{name} ({before}), which "
                f"is now ({now}); take that one again, or another target.table"
            )


def check_others(others: Sequence[Writer], job: Writer, target: str) -> None:
    """Check that other sources of a target have their rows in it by the same key.

    Raises:
        TableError: one has not: a row of it may be taken for one of this job's.
    """
    for other in others:
        if set(other.key) != set(job.key):
            raise TableError(
                f"{target}: rows of {other.source} are in it by source.key "
                f"({', '.join(other.key)}), those of {job.source} would be by "
                f"({', '.join(job.key)}); name another target.table, or the same key in both, or, "
                f"if {other.source} is gone for good, delete its rows from the target, and then "
                f"{writers.forgetting(target, other)}"
            )


def find(
    spark: "SparkSession",
    writer: Writer | None,
    *,
    source: Source,
    target: str,
    checkpoint: str,
) -> Position:
    """Return where the stream over a source goes on.

    Each source, and each version to begin with, has a folder of its own in the target's part of
    the checkpoint: none can be taken for another's.

    Raises:
        BusyError: another run of the same job is at work.
        TableError: the checkpoint was reset, or is older than the target; the source was made
            anew, or put back; the target was restored.
    """
    if writer is not None and writer.id != source.id:
        raise TableError(f"{source.table}: was made anew since {target} was written; {RECOVER}")
    if writer is not None and writer.snapshot is not None:
        raise TableError(
            f"{target}: a snapshot of {source.table} was begun and has not ended; if it is not at "
            f"work, {RECOVER}"
        )
    start = None if writer is None or writer.version is None else writer.version + 1
    folder = f"{checkpoint}/stream-{source.id[:8]}" + ("" if start is None else f"-{start}")
    if start is not None:
        _check_read(spark, start - 1, source)
    query = query_id(spark, folder)
    known = None if writer is None else writer.query
    if known is not None and query != known:
        _check_alone(spark, writer, source=source, target=target)
        raise TableError(
            f"{checkpoint}: is not the checkpoint that {target} was written with, which says what "
            f"of {source.table} was read; restore that one, or {RECOVER}"
        )
    if query is None:
        return Position(folder, start)
    seen = trace(spark, target, query, source)
    is_restored, read = seen.is_restored, None
    last: Trace | None = seen
    if seen.number is None:
        has_ended = bool(lines(spark, f"{folder}/commits"))
        # A stream is recorded before its first commit: where it has ended a micro-batch and has no
        # record, a restore has undone both; where it has ended none, a restore has undone nothing.
        is_restored = (is_restored and writer is not None) or (known is None and has_ended)
        last = None if has_ended else seen
    else:
        # Of files that were put back the history tells nothing, but it lacks what came after them.
        is_restored |= known is None or bool(lines(spark, f"{folder}/commits/{seen.number + 1}"))
        read = lines(spark, f"{folder}/offsets/{seen.number}")
    if is_restored:
        _check_alone(spark, writer, source=source, target=target)
        if trace(spark, target, query, source) != seen:
            raise _busy(target)
        raise TableError(
            f"{target}: was restored to a version that lacks rows which {checkpoint} says were "
            f"written; {RECOVER}"
        )
    if read is not None:
        _check_read(spark, _offset(read, f"{folder}/offsets/{seen.number}").whole, source)
    elif seen.number is not None:
        _check_alone(spark, writer, source=source, target=target)
        raise TableError(
            f"{checkpoint}: is older than {target}, which has rows that were read since; restore "
            f"its latest state, or {RECOVER}"
        )
    return Position(folder, start, last)


def remove_streams(spark: "SparkSession", checkpoint: str, source: Source) -> None:
    """Remove what streams over a source remember: a snapshot has read it as a whole."""
    for folder in folders_in(spark, checkpoint):
        if basename(folder).startswith(f"stream-{source.id[:8]}"):
            remove(spark, folder)


def _check_alone(
    spark: "SparkSession", writer: Writer | None, *, source: Source, target: str
) -> None:
    """Check that the record of a source is as it was read: another run may have gone on meanwhile.

    Raises:
        BusyError: one has.
    """
    if recorded(spark, writers.find(spark, target), source) != writer:
        raise _busy(target)


def _busy(target: str) -> BusyError:
    return BusyError(
        f"{target}: another run of this job is at work; what is not in the target yet, the next "
        "run scores"
    )


def _offset(said: Sequence[str], file: str) -> Offset:
    """Return what an offset file says.

    Raises:
        TableError: it is damaged.
    """
    try:
        return Offset.of(json.loads(said[-1]))
    except (ValueError, LookupError, TypeError) as error:
        raise damaged(file) from error


def _check_read(spark: "SparkSession", version: int, source: Source) -> None:
    """Check that a source still has a version that was read: files may have been put back.

    Raises:
        TableError: it has not.
    """
    # It may have grown since this run has looked, and another run have read that.
    if version > source.version and version > latest(spark, source.table):
        raise TableError(
            f"{source.table}: is at version {source.version}, and {version} was read already: an "
            f"older state of it was put back; {RECOVER}"
        )


def query_id(spark: "SparkSession", folder: str) -> str | None:
    """Return the id that Spark gave the query of a checkpoint folder; None where there is none.

    Raises:
        TableError: the file that holds it is damaged.
    """
    found = lines(spark, f"{folder}/metadata")
    if not found:
        return None
    try:
        return str(json.loads(found[0])["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(f"{folder}/metadata") from error
