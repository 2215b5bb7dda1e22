"""A source as a whole: its latest version is compared with the target, and what differs scored."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from lakescore.errors import BusyError, TableError
from lakescore.opening import Job
from lakescore.places import STREAM_STAGES
from lakescore.run import Recorder
from lakescore.tables import changes, load, names, position, remove, source, stream, writers
from lakescore.tables.changes import CHANGE
from lakescore.todo import score_steps

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

logger = logging.getLogger(__name__)


def score_snapshot(spark: "SparkSession", job: Job, recorder: Recorder) -> None:
    """Compare the source's latest version with the target, and score what differs.

    Raises:
        BusyError: another run of this job was faster.
        TableError: another source's rows stand in the way, or a table cannot be read or written.
    """
    from pyspark.sql import functions as F

    is_overwrite = job.config.write == "overwrite"
    table = job.source.table
    # In this order: whoever has rows in this version of the target is recorded by then.
    seen = names.version(spark, job.target)
    known = writers.find(spark, job.target)
    version = names.version(spark, table)  # not older than what another run may have read by then
    recorder.versions = stream.VersionsRead(version, version)
    mine = writers.mine(spark, known, job.source)
    before = mine[0] if mine else None
    if before is not None:
        position.check_writer(before, job.writer, job.target)
    others = [each for each in known if each not in mine]
    if others and is_overwrite:
        raise TableError(
            f"{job.target}: holds rows of {others[0].source} too, which target.write: overwrite "
            "would remove; choose merge, or another target.table, or, if they are to go, "
            f"{writers.forgetting(job.target, others[0])}"
        )
    position.check_others(others, job.writer, job.target)
    rows = load(spark, table, version=version)
    source.check_keys(rows, table, job.key)
    rows = rows.withColumn(CHANGE, F.lit(changes.UPDATE))
    prepared = changes.prepared(rows, carried=job.carried, text=job.config.source.text)
    todo = changes.differences(
        prepared,
        load(spark, job.target, version=seen),
        key=job.key,
        carried=job.carried,
        versions=job.plan.versions,
        with_deletes=True,
    )
    todo, is_withheld = _without_others(spark, todo, others, job)
    done = replace(job.writer, version=version, withheld=is_withheld)
    begun = replace(job.writer, snapshot=recorder.run.id)

    def guard(writer: writers.Writer | None) -> Callable[[], None]:
        return writers.guard(spark, job.target, job.source, writer, alone=is_overwrite)

    recorder.batches.guard = guard(begun)

    def register(writer: writers.Writer, *, in_place_of: writers.Writer | None) -> None:
        is_free, is_first = guard(in_place_of), in_place_of == before

        def unchanged() -> None:
            is_free()
            if (before or not is_first) and writers.was_changed(
                spark, job.target, before, since=seen, registered=is_first
            ):
                raise BusyError(
                    f"{job.target}: another run of this job wrote to it, or it was restored, while "
                    f"{table} was compared with it; run it again"
                )

        writers.register(spark, job.target, writer, before=mine, guard=unchanged)

    recorder.batches.before_first_write = lambda: register(begun, in_place_of=before)
    if not is_overwrite:
        score_steps(spark, job, recorder, todo, max_bytes=job.config.source.max_bytes)
    else:
        is_gone = F.col(CHANGE) == changes.DELETE
        found = todo.agg(F.count(F.lit(1)), F.count_if(is_gone)).head()
        assert found is not None  # an aggregate without groups has one row
        if found[0]:
            recorder.batches.rows_leaving = found[1]
            score_steps(spark, job, recorder, prepared, max_bytes=2**63)
    last = begun if recorder.batches.has_written else before
    if last != done:
        register(done, in_place_of=last)
    else:
        guard(last)()
    # The stream begins anew, in a folder of its own.
    remove(spark, f"{job.checkpoint}/{STREAM_STAGES}")
    position.remove_streams(spark, job.checkpoint, job.source)


def _without_others(
    spark: "SparkSession", todo: "DataFrame", others: list[writers.Writer], job: Job
) -> tuple["DataFrame", bool]:
    """Return what differs without rows of other sources, and whether deletions were left out.

    That is where another source cannot be read: what is not in this one may be of that one.
    """
    from pyspark.sql import functions as F

    unread: list[writers.UnreadError] = []
    for other in others:
        try:
            todo = writers.without_keys_of(
                spark, todo, other, job.source, table=job.target, key=job.key
            )
        except writers.UnreadError as error:
            unread.append(error)
    if not unread:
        return todo, False
    is_gone = F.col(CHANGE) == changes.DELETE
    is_withheld = not todo.where(is_gone).isEmpty()
    if is_withheld:
        for each in unread:
            logger.warning(
                "%s; what was deleted from %s stays in it meanwhile", each, job.source.table
            )
    return todo.where(~is_gone), is_withheld
