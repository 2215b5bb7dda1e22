"""A source that grows or changes: what is new since the last run, a micro-batch at a time."""

import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lakescore.errors import TableError
from lakescore.failpoints import reached
from lakescore.opening import Job
from lakescore.run import Recorder
from lakescore.tables import changes, commits, load, position, stream, writers, writing
from lakescore.tables.changes import CHANGE
from lakescore.tables.folders import lines
from lakescore.tables.source import RECOVER

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

logger = logging.getLogger(__name__)

POLL_SECONDS = 1


def score_stream(spark: "SparkSession", job: Job, recorder: Recorder) -> None:
    """Score what was added or changed since the last run, a micro-batch at a time."""
    from pyspark.errors import StreamingQueryException

    config, is_feed = job.config.source, job.config.source.changes == "cdf"
    known = writers.find(spark, job.target)
    mine = writers.mine(spark, known, job.source)
    position.check_others([each for each in known if each not in mine], job.writer, job.target)
    writer = mine[0] if mine else None
    if writer is not None:
        position.check_writer(writer, job.writer, job.target)
        _warn_of_withheld(writer, job)
    at = position.find(
        spark, writer, source=job.source, target=job.target, checkpoint=job.checkpoint
    )
    if at.starting_version is not None and at.starting_version > job.source.version:
        recorder.versions = stream.VersionsRead(job.source.version, job.source.version)
        return  # nothing came after the snapshot, and Spark refuses to wait for it
    added = stream.read_stream(
        spark,
        job.source.table,
        feed=is_feed,
        starting_version=at.starting_version,
        max_bytes=config.max_bytes,
        max_files=config.max_files,
    )

    recorder.batches.before_first_write = lambda: _register(spark, job, recorder, at, mine)
    failures: list[BaseException] = []
    committed: list[int] = []

    def score_batch(rows: "DataFrame", number: int) -> None:
        try:
            recorder.batches.commit(
                _followed(spark, rows, number, at, job) if is_feed else _added(rows, job),
                commits.app_of(_query_id(spark, at)),
                number,
                expected=lambda: _expected(spark, job, at, number),
            )
            committed.append(number)
        except BaseException as error:
            # Spark would write down all that it says, which may quote a row.
            failures.append(error)
            raise RuntimeError("the driver says why") from None

    query = (
        added.writeStream.trigger(availableNow=True)
        .option("checkpointLocation", at.folder)
        .foreachBatch(score_batch)
    )
    with stream.unlogged(spark):
        running = query.start()
        seen = -1
        try:
            while not running.awaitTermination(POLL_SECONDS):
                seen = _follow(running, recorder, at, seen)
                recorder.show()
        except StreamingQueryException as error:
            # Another run wrote down the same micro-batch: it is in that one's bill.
            if committed and re.search(rf"detected for {committed[-1]}\b", str(error)):
                committed.clear()
            raise (failures[0] if failures else error) from None
        finally:
            running.stop()
            # What Spark has written down no later run counts.
            if committed and lines(spark, f"{at.folder}/commits/{committed[-1]}"):
                recorder.batches.settle()
            _follow(running, recorder, at, seen)
    reached("query_ended")


def _warn_of_withheld(writer: writers.Writer, job: Job) -> None:
    """Say that a snapshot could not remove all that was deleted, if that is so."""
    if writer.withheld:
        logger.warning(
            "%s: what was deleted from %s up to version %s may still be in it, since the last "
            "snapshot could not read another source of it; %s",
            job.target,
            job.source.table,
            writer.version,
            RECOVER,
        )


def _query_id(spark: "SparkSession", at: position.Position) -> str:
    """Return the id of a query that has begun.

    Raises:
        TableError: what Spark wrote down of it cannot be read.
    """
    if (found := position.query_id(spark, at.folder)) is None:
        raise TableError(
            f"{at.folder}: its file `metadata`, which is Spark's own, cannot be read; let "
            "target.checkpoint be a folder that this Spark can read and write"
        )
    return found


def _register(
    spark: "SparkSession",
    job: Job,
    recorder: Recorder,
    at: position.Position,
    mine: list[writers.Writer],
) -> None:
    """Let the target record which query writes it, unless it does: what is there is `mine`."""
    writer = mine[0] if mine else None
    found = replace(
        job.writer,
        query=_query_id(spark, at),
        version=None if at.starting_version is None else at.starting_version - 1,
        withheld=writer is not None and writer.withheld,
    )
    recorder.batches.guard = writers.guard(spark, job.target, job.source, found)
    if found != writer:
        free = writers.guard(spark, job.target, job.source, writer, found)
        writers.register(spark, job.target, found, before=mine, guard=free)


def _expected(
    spark: "SparkSession", job: Job, at: position.Position, number: int
) -> stream.Expected | None:
    """Count the rows from a micro-batch on; of a change feed at its beginning alone."""
    is_feed = job.config.source.changes == "cdf"
    if is_feed and (number > 0 or at.starting_version is not None):
        return None
    known = stream.rows_expected(
        spark,
        job.source.table,
        at.last,
        starting_version=at.starting_version,
        version=job.source.version,
    )
    return known._replace(read=None) if known is not None and is_feed else known


def _added(rows: "DataFrame", job: Job) -> "DataFrame":
    """Return rows that were added, ready to be scored."""
    from pyspark.sql import functions as F

    new = rows.withColumn(CHANGE, F.lit(changes.INSERT))
    return changes.prepared(new, carried=job.carried, text=job.config.source.text)


def _followed(
    spark: "SparkSession", feed: "DataFrame", number: int, at: position.Position, job: Job
) -> "DataFrame":
    """Return what a part of the change feed makes of the target, ready to be scored."""
    from pyspark.sql import functions as F

    begin, end = (stream.offset_of(spark, at.folder, each) for each in (number - 1, number))
    assert end is not None  # it has a number
    ends_of = [each for each in (begin, end) if each is not None and not each.is_first]
    parts = {each.part for each in ends_of if each.part is not None}
    names = dict.fromkeys([*job.carried, job.config.source.text])
    rows = changes.net_changes(feed, job.key, [*names], partly=parts)
    ranged = writing.ranged(job.schema, job.key, job.config.source.text)
    is_unsure, is_gone = (F.col(CHANGE) == each for each in (changes.UNSURE, changes.DELETE))
    counted = rows.agg(
        F.count_if(is_unsure),
        F.count_if(is_gone),
        F.count_if(F.col(CHANGE).isin(changes.UNSURE, changes.UPDATE)),
        *(each(value) for value in ranged.values() for each in (F.min, F.max)),
    ).head()
    assert counted is not None  # an aggregate without groups has one row
    unsure, gone, updates, *ends = counted
    others: list[writers.Writer] = []
    if unsure or gone:
        others = writers.others(spark, writers.find(spark, job.target), job.source)
    # What has left this source, or is not known to have been in it, may be another's by now.
    doubtful = [rows.where(is_gone)] if gone and others else []
    certain = rows.where(~(is_unsure | is_gone)) if doubtful else rows.where(~is_unsure)
    if unsure:
        doubtful.append(changes.resolved(rows, _as_of(spark, job.source.table, end), job.key))
    for mine in doubtful:
        for other in others:
            mine = writers.without_keys_of(
                spark, mine, other, job.source, table=job.target, key=job.key
            )
        certain = certain.unionByName(mine, allowMissingColumns=True)
    certain = changes.prepared(certain, carried=job.carried, text=job.config.source.text)
    if not updates:
        return certain
    there = load(spark, job.target)
    known = {name: pair for name, *pair in zip(ranged, ends[::2], ends[1::2], strict=True)}
    there = writing.within(there, writing.ranges(known, job.schema))
    return changes.differences(
        certain,
        there,
        key=job.key,
        carried=job.carried,
        versions=job.plan.versions,
        with_deletes=False,
    )


def _as_of(spark: "SparkSession", table: str, end: stream.Offset) -> "DataFrame":
    """Return a source as it was at the end of a micro-batch.

    Raises:
        TableError: it cannot be read as it was then.
    """
    version = end.whole if end.part is None else end.part
    try:
        return load(spark, table, version=version)
    except TableError as error:
        load(spark, table)
        raise TableError(
            f"{table}: cannot be read any more as it was at version {version}, by VACUUM or by the "
            f"clean-up of its log; {RECOVER}"
        ) from error


def _follow(query: Any, recorder: Recorder, at: position.Position, seen: int) -> int:
    """Take note of the micro-batches that Spark says are done, after number `seen`."""
    for progress in query.recentProgress:
        number = int(progress["batchId"])
        if number > seen and progress["sources"][0]["endOffset"] is not None:
            recorder.versions = recorder.versions.after(progress, at.starting_version)
            seen = number
    return seen
