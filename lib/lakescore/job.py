"""The job: what is new in a source table, scored into a target, every row once."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakescore.config import JobConfig, check_output
from lakescore.errors import LakescoreError, TableError
from lakescore.failpoints import reached
from lakescore.microbatch import Job
from lakescore.progress import Progress
from lakescore.run import Recorder, RunSummary, opened, recorded, summary_of
from lakescore.tables import (
    CHANGE,
    HASH,
    load,
    names,
    position,
    quoted,
    source,
    stage,
    target,
    writing,
)
from lakescore.todo import Todo

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

logger = logging.getLogger(__name__)

POLL_SECONDS = 1
STREAM_STAGES, TODO_STAGES = "stage-stream", "stage-todo"


def score_table(
    spark: "SparkSession", config: JobConfig, *, now: datetime, progress: Progress
) -> RunSummary:
    """Score what is new in the source table into the target, in one MLflow run.

    Args:
        spark: the session to use.
        config: the job; must name source.table, source.key and target.table.
        now: the time to write into the column `scored_at`.
        progress: is called every second or so.

    Raises:
        BudgetError: more rows failed than the job allows.
        BusyError: another run of this job is at work, or was faster; it has the rows.
        ConfigError: the job lacks a table, a key or a checkpoint.
        ModelError: a model cannot be resolved, is unsafe, or does not fit its task.
        SetupError: the session is one of Spark Connect.
        TableError: the source is missing, changed otherwise than the job allows, or does not fit
            the target; or a table cannot be read or written.
    """
    if config.report is not None:  # else a long run would end in that error
        check_output(Path(config.report))
    is_snapshot = config.source.changes == "snapshot"
    stages = TODO_STAGES if is_snapshot else STREAM_STAGES
    with opened(spark, config) as job:

        def report(recorder: Recorder) -> None:
            recorder.report = _report(spark, job, recorder)

        with (
            recorded(
                spark, job, "score", now=now, progress=progress, stages=stages, finish=report
            ) as recorder,
            explained(job),
        ):
            if is_snapshot:
                _score_snapshot(spark, job, recorder)
            else:
                _score_stream(spark, job, recorder)
        return summary_of(job, recorder)


def _score_stream(spark: "SparkSession", job: Job, recorder: Recorder) -> None:
    """Score what was added or changed since the last run, a micro-batch at a time."""
    from pyspark.errors import StreamingQueryException
    from pyspark.sql import functions as F

    config, is_feed = job.config.source, job.config.source.changes == "cdf"
    table, version = job.source.table, job.source.version
    writer = position.recorded(target.writers(spark, job.target), job.source)
    if writer is not None:
        position.check_writer(writer, job.source, job.target, job.key)
    at = position.find(
        spark, writer, source=job.source, target=job.target, checkpoint=job.checkpoint
    )
    if at.starting_version is not None and at.starting_version > version:
        recorder.versions = source.VersionsRead(version, version)
        return  # nothing came after the snapshot, and Spark refuses to wait for it
    stream = source.read_stream(
        spark,
        table,
        feed=is_feed,
        starting_version=at.starting_version,
        max_bytes=config.max_bytes,
        max_files=config.max_files,
    )

    def register() -> None:
        found = target.Writer(
            source=table,
            id=job.source.id,
            key=job.key,
            query=position.query_id(spark, at.folder),
            version=None if at.starting_version is None else at.starting_version - 1,
        )
        if found != writer:
            target.register(spark, job.target, found)

    recorder.batches.before_first_write = register
    failures: list[BaseException] = []

    def score_batch(rows: "DataFrame", number: int) -> None:
        def expected() -> int | None:
            if is_feed and (number > 0 or at.starting_version is not None):
                return None
            return source.rows_expected(spark, table, at.folder, number, at.starting_version)

        try:
            new = (
                source.net_changes(rows, job.key)
                if is_feed
                else rows.withColumn(CHANGE, F.lit(source.INSERT))
            )
            recorder.batches.commit(
                _prepared(new, job),
                f"lakescore-{position.query_id(spark, at.folder)}",
                number,
                text=config.text,
                expected=expected,
            )
        except BaseException as error:
            # Spark would write down all that it says, which may quote a row.
            failures.append(error)
            raise RuntimeError("the driver says why") from None

    query = (
        stream.writeStream.trigger(availableNow=True)
        .option("checkpointLocation", at.folder)
        .foreachBatch(score_batch)
    )
    running = _started(query, job)
    try:
        seen = -1
        while not running.awaitTermination(POLL_SECONDS):
            seen = _follow(running, recorder, seen)
        _follow(running, recorder, seen)
    except StreamingQueryException as error:
        raise (failures[0] if failures else error) from None
    finally:
        running.stop()
    reached("query_ended")


def _prepared(rows: "DataFrame", job: Job) -> "DataFrame":
    """Return the columns that a micro-batch needs: those carried, the text, its hash, `CHANGE`."""
    from pyspark.sql import functions as F

    text = job.config.source.text
    wanted = list(dict.fromkeys([*job.carried, text, CHANGE]))
    chosen = rows.select(*(F.col(quoted(name)) for name in wanted))
    return chosen.withColumn(HASH, F.xxhash64(quoted(text)))


def _started(query: Any, job: Job) -> Any:
    try:
        return query.start()
    except Exception as error:  # of Java's own: of a file system, for instance
        if not hasattr(error, "java_exception"):
            raise
        if (known := writing.write_error(job.checkpoint, error)) is None:
            raise
        raise known from error


def _follow(query: Any, recorder: Recorder, seen: int) -> int:
    """Take note of the micro-batches that Spark says are done, after number `seen`."""
    for progress in query.recentProgress:
        number = int(progress["batchId"])
        if number > seen and progress["sources"][0]["endOffset"] is not None:
            recorder.versions = recorder.versions.after(progress)
            seen = number
    recorder.show()
    return seen


def _score_snapshot(spark: "SparkSession", job: Job, recorder: Recorder) -> None:
    """Compare the source's latest version with the target, and score what differs."""
    from pyspark.sql import functions as F

    is_overwrite = job.config.write == "overwrite"
    table, version = job.source.table, job.source.version
    recorder.versions = source.VersionsRead(version, version)
    writers = target.writers(spark, job.target)
    before = position.recorded(writers, job.source)
    if before is not None:
        position.check_writer(before, job.source, job.target, job.key)
    others = [each.source for each in writers if each != before]
    if others and is_overwrite:
        raise TableError(
            f"{job.target}: holds rows of {others[0]} too, which target.write: overwrite would "
            "remove; choose merge, or another target.table"
        )
    if others:
        logger.warning(
            "%s: holds rows of %s too; rows deleted from %s stay in it",
            job.target,
            ", ".join(others),
            table,
        )
    rows = load(spark, table, version=version)
    source.check_keys(rows, table, job.key)
    prepared = _prepared(rows.withColumn(CHANGE, F.lit(source.INSERT)), job)
    there = load(spark, job.target)
    if is_overwrite:
        is_stale = ~source.is_scored_by(job.plan.versions)
        if before and before.version == version and not there.where(is_stale).head(1):
            return
        todo = prepared
    else:
        todo = source.differences(
            prepared.drop(CHANGE),
            there,
            key=job.key,
            carried=job.carried,
            versions=job.plan.versions,
            with_deletes=not others,
        )

    def register(ended: int | None = None) -> None:
        writer = target.Writer(source=table, id=job.source.id, key=job.key, version=ended)
        target.register(spark, job.target, writer)

    if before is None:
        recorder.batches.before_first_write = register
    score_steps(
        spark, job, recorder, todo, max_bytes=2**63 if is_overwrite else job.config.source.max_bytes
    )
    done = target.Writer(source=table, id=job.source.id, key=job.key, version=version)
    if done != before:
        register(version)


def score_steps(
    spark: "SparkSession", job: Job, recorder: Recorder, rows: "DataFrame", *, max_bytes: int
) -> None:
    """Score rows that are known beforehand, each step of them one commit."""
    from pyspark.sql import functions as F

    names.remove(spark, f"{job.checkpoint}/{TODO_STAGES}")  # of a run that was killed
    todo = Todo(rows, f"{job.checkpoint}/todo")
    is_scored = ~F.col(CHANGE).isin(source.DELETE, source.REFRESH)
    found = todo.rows.agg(F.count(F.lit(1)), F.count_if(is_scored)).head()
    assert found is not None  # an aggregate without groups has one row
    if found[0] or job.config.write == "overwrite":
        for number, step in enumerate(todo.steps(key=job.key, max_bytes=max_bytes)):
            recorder.batches.commit(
                step,
                f"lakescore-{recorder.run.id}",
                number,
                text=job.config.source.text,
                expected=lambda: int(found[1]),
            )
            recorder.show()
    recorder.batches.settle()
    todo.remove()
    reached("todo_removed")


@contextmanager
def explained(job: Job) -> Iterator[None]:
    """Say in lakescore's words why tables cannot be read on; Spark's own may quote rows."""
    try:
        yield
    except Exception as error:  # Spark's, Delta's, and Java's own, or lakescore's
        said = str(error)
        if isinstance(error, LakescoreError):
            raise stage.lost(said, job.checkpoint) or error from error.__cause__
        known = stage.lost(said, job.checkpoint) or source.read_error(said, job.source.table)
        known = known or writing.write_error(job.checkpoint, error)
        if known is None:
            raise
        raise known from error


def _report(spark: "SparkSession", job: Job, recorder: Recorder) -> str | None:
    """Write the report about the whole target, where the job asks for one."""
    if job.config.report is None:
        return None
    from lakescore.report import write_report

    path = write_report(
        spark,
        job.target,
        Path(job.config.report),
        text_column=job.config.source.text,
        key=job.key,
        log_to=recorder.run,
    )
    return str(path)
