"""A stream over a source: its micro-batches, where each of them ends, what is before it."""

import ast
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from lakescore.tables.folders import lines
from lakescore.tables.names import absolute, identifier, is_path, load
from lakescore.tables.writers import Trace

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


_STREAMING = "org.apache.spark.sql.execution.streaming"
# Of Spark up to 4.0, and of later ones.
_LOGGERS = tuple(f"{_STREAMING}.{each}MicroBatchExecution" for each in ("", "runtime."))
_LOCK = Lock()
_unlogged = 0


@contextmanager
def unlogged(spark: "SparkSession") -> Iterator[None]:
    """Let Spark not log why a stream ends: it may quote a text, as of a DELETE in the source.

    That is so until the last of this process's streams that are at work at once has ended.
    """
    global _unlogged
    jvm: Any = spark._jvm
    log4j = jvm.org.apache.logging.log4j
    with _LOCK:
        for name in _LOGGERS:
            log4j.core.config.Configurator.setLevel(name, log4j.Level.OFF)
        _unlogged += 1
    try:
        yield
    finally:
        with _LOCK:
            _unlogged -= 1
            if not _unlogged:
                # Not by a level, with which a logger says more than Spark's shell lets others.
                context = log4j.LogManager.getContext(False)
                for name in _LOGGERS:
                    context.getConfiguration().removeLogger(name)
                context.updateLoggers()


def read_stream(
    spark: "SparkSession",
    source: str,
    *,
    feed: bool,
    starting_version: int | None,
    max_bytes: int,
    max_files: int | None,
) -> "DataFrame":
    """Return a stream of a table's rows, or of its change feed, in bounded micro-batches.

    The checkpoint of the query that writes it says which are new. Without a starting version it
    begins with all rows that are there.
    """
    options = {
        "maxBytesPerTrigger": max_bytes,
        "maxFilesPerTrigger": max_files or 2**31 - 1,
        "readChangeFeed": feed or None,
        "startingVersion": starting_version,
    }
    reader = spark.readStream.format("delta")
    for name, value in options.items():
        if value is not None:
            reader = reader.option(name, value)
    return reader.load(absolute(source)) if is_path(source) else reader.table(identifier(source))


@dataclass(frozen=True, slots=True)
class Offset:
    """Where a micro-batch of a stream ends.

    Attributes:
        whole: the last version that was wholly read by then.
        part: the version of which a part was read, if there is one.
        is_first: whether this is within the first read of the table, which has no versions.
    """

    whole: int
    part: int | None
    is_first: bool

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Offset":
        """Return what Delta's own offset says; its index is below 0 where no part was read."""
        version, is_part = int(said["reservoirVersion"]), int(said["index"]) >= 0
        return cls(version - 1, version if is_part else None, bool(said["isStartingVersion"]))


def offset_of(spark: "SparkSession", stream: str, number: int) -> Offset | None:
    """Return where micro-batch `number` of a stream's folder ends; None before the first."""
    if number < 0:
        return None
    found = lines(spark, f"{stream}/offsets/{number}")
    assert found  # Spark writes it down before it begins
    return Offset.of(json.loads(found[-1]))


class Expected(NamedTuple):
    """How many rows a run has before it, if that is known.

    Attributes:
        ahead: those from this micro-batch on.
        read: those that a stream has read of its source before; the target's history keeps it.
    """

    ahead: int
    read: int | None = None


def rows_expected(
    spark: "SparkSession",
    source: str,
    last: Trace | None,
    *,
    starting_version: int | None,
    version: int,
) -> Expected | None:
    """Count what an append stream has read, and what it has before it; None if that is unknown.

    `last` is what it committed last, None if that is not known; `version` is the source's as the
    run began. Delta counts rows without reading them.
    """
    if last is None:
        return None
    try:
        read = last.rows_read
        if last.number is None:
            read = 0
            if starting_version is not None:
                read = load(spark, source, version=starting_version - 1).count()
        if read is None:
            return None
        ahead = load(spark, source, version=version).count() - read
        return Expected(max(ahead, 0), read)
    except Exception:  # of any kind, as where a file of that version is gone: it stops no run
        return None


@dataclass(frozen=True, slots=True)
class VersionsRead:
    """The versions of a source that a run has read: the first, and the last one wholly read."""

    first: int | None = None
    last: int | None = None

    def after(self, progress: Any, starting_version: int | None) -> "VersionsRead":
        """Return them with those of one micro-batch's progress added.

        The first one of a stream begins with its starting version, or has read all that was there.
        """
        [source] = progress["sources"]
        begin, end = _offset(source["startOffset"]), _offset(source["endOffset"])
        if end is None:
            return self
        last = end.whole if end.part is None else end.part
        began = last if starting_version is None else starting_version
        first = began if begin is None else begin.whole + 1
        return VersionsRead(min(self.first if self.first is not None else first, first, last), last)


def _offset(value: Any) -> Offset | None:
    """Return Delta's offset: Spark 3.5 hands over a dict, 4.0 JSON, 4.1 the text of a dict."""
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except ValueError:
            found = ast.literal_eval(value)
    return Offset.of(found) if isinstance(found, dict) else None
