"""New scores for rows that are in the target already: of another model version, or failed."""

from datetime import datetime
from typing import TYPE_CHECKING

from lakescore.config import JobConfig
from lakescore.job import explained
from lakescore.opening import Job, opened
from lakescore.progress import Progress, quiet
from lakescore.run import RunSummary, recorded, summary_of
from lakescore.tables import CHANGE, HASH, changes, load, position, quoted, source, writers
from lakescore.text import ErrorCode
from lakescore.todo import score_steps

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

# What may pass: another machine, a whole checkpoint, a text that was not to blame.
PASSING = (ErrorCode.OUT_OF_MEMORY, ErrorCode.NON_FINITE, ErrorCode.WORKER_LOST)


def rescore_table(
    spark: "SparkSession", config: JobConfig, *, now: datetime, progress: Progress = quiet
) -> RunSummary:
    """Score again the rows of the target whose model version is not the current one.

    It goes on where it was stopped, since rows that it has done are of the current version. There
    is no report, and a target that is not there is a `TableError`; all else is as with
    `score_table`.
    """
    return _again(spark, config, "rescore", now=now, progress=progress)


def retry_table(
    spark: "SparkSession", config: JobConfig, *, now: datetime, progress: Progress = quiet
) -> RunSummary:
    """Score again the rows of the target whose error may pass; all else as with `rescore_table`."""
    return _again(spark, config, "retry", now=now, progress=progress)


def _again(
    spark: "SparkSession", config: JobConfig, command: str, *, now: datetime, progress: Progress
) -> RunSummary:
    from pyspark.sql import functions as F

    with (
        opened(spark, config, makes_target=False) as job,
        recorded(spark, job, command, now=now, progress=progress, how="merge") as recorder,
        explained(job),
    ):
        is_wanted: Column = ~changes.is_scored_by(job.plan.versions)
        if command == "retry":
            is_wanted = F.col("error.code").isin(*map(str, PASSING))
        rows = _own(spark, job, load(spark, job.target).where(is_wanted))
        todo = _with_text(spark, rows, config).withColumn(CHANGE, F.lit(changes.RESCORE))
        score_steps(spark, job, recorder, todo, max_bytes=config.source.max_bytes)
    return summary_of(job, recorder)


def _own(spark: "SparkSession", job: Job, rows: "DataFrame") -> "DataFrame":
    """Return the rows that are of the job's own source, where the target has those of others."""
    known = writers.find(spark, job.target)
    writer = writers.recorded(spark, known, job.source)
    if writer is not None:
        position.check_writer(writer, job.writer, job.target)
    if not writers.others(spark, known, job.source):
        return rows
    key = [*job.key]
    return rows.join(load(spark, job.source.table).select(*map(quoted, key)), key, "left_semi")


def _with_text(spark: "SparkSession", rows: "DataFrame", config: JobConfig) -> "DataFrame":
    """Return keys, texts and hashes: from the target, or from the source where it lacks the text.

    That may be of all rows, or of those from before its column was added. A text that has changed
    in the source since is left for `score`.

    Raises:
        RefusedRowsError: the source has a key more than once.
    """
    from pyspark.sql import functions as F

    key, text = [*config.source.key], config.source.text
    hashed = F.xxhash64(quoted(text))
    wanted = [*map(quoted, dict.fromkeys([*key, text])), HASH]
    own = None
    if text in rows.columns:
        has_text = hashed.eqNullSafe(F.col(HASH))
        own, rows = rows.where(has_text).select(*wanted), rows.where(~has_text)
        if not rows.head(1):
            return own
    assert config.source.table is not None  # job_tables has seen to it
    texts = load(spark, config.source.table).withColumn(HASH, hashed).select(*wanted)
    kept = rows.select(*map(quoted, [*key, HASH]))
    found = texts.join(kept, [*key, HASH], "left_semi")
    source.check_keys(found, config.source.table, key)
    return found if own is None else own.unionByName(found)
