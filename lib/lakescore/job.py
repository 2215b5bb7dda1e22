"""The job: what is new in a source table, scored into a target, every row once."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lakescore.comparison import score_snapshot
from lakescore.config import JobConfig, check_output
from lakescore.distribute import is_connect
from lakescore.errors import LakescoreError, SetupError
from lakescore.opening import Job, opened
from lakescore.places import STREAM_STAGES
from lakescore.progress import Progress, quiet
from lakescore.run import Recorder, RunSummary, recorded, summary_of
from lakescore.stream import score_stream
from lakescore.tables import commits, source

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def score_table(
    spark: "SparkSession", config: JobConfig, *, now: datetime, progress: Progress = quiet
) -> RunSummary:
    """Score what is new in the source table into the target, in one MLflow run.

    Args:
        spark: the session to use.
        config: the job; must name source.table, source.key and target.table.
        now: the time to write into the column `scored_at`.
        progress: is called after each micro-batch; with a stream every second or so, too.

    Raises:
        BudgetError: more rows failed than the job allows.
        BusyError: another run of this job is at work, or was faster.
        ConfigError: the job lacks a table, a key or a checkpoint.
        ModelError: a model cannot be resolved, is unsafe, or does not fit its task.
        SetupError: MLflow's store cannot be reached; or the session cannot do what the job asks
            for: number commits (serverless), or run a stream (Spark Connect).
        TableError: the source is missing, changed otherwise than the job allows, or does not fit
            the target; or a table cannot be read or written.
    """
    if config.report is not None:  # now, and not after hours of scoring
        check_output(Path(config.report))
    is_snapshot = config.source.changes == "snapshot"
    if not is_snapshot and is_connect(spark):
        raise SetupError(
            f"source.changes is {config.source.changes}, a stream, which lakescore does not run on "
            "Spark Connect (standard access mode, serverless); set it to snapshot, or run the job "
            "in dedicated access mode"
        )
    stages = None if is_snapshot else STREAM_STAGES
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
                score_snapshot(spark, job, recorder)
            else:
                score_stream(spark, job, recorder)
        return summary_of(job, recorder)


@contextmanager
def explained(job: Job) -> Iterator[None]:
    """Say in lakescore's words why tables cannot be read on; Spark's own may quote rows."""
    try:
        yield
    except LakescoreError:
        raise
    except Exception as error:  # Spark's, Delta's, and Java's own
        known: LakescoreError | None = source.unreadable(error, job.source)
        known = known or commits.write_error(job.checkpoint, error)
        known = known or source.read_error(str(error), job.source, job.target, job.location)
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
