"""The record of one run of a job: in MLflow as it happens, then in a bill."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lakescore import tracking
from lakescore.config import Write
from lakescore.distribute import is_connect
from lakescore.errors import LakescoreError, TableError
from lakescore.failpoints import reached
from lakescore.microbatch import MicroBatches
from lakescore.opening import Job
from lakescore.places import folder_of_run
from lakescore.progress import Progress
from lakescore.tables import bill, stream

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSummary:
    """What a run did: the last line that it prints.

    Rows in are rows scored and rows failed together. Rows refreshed had other columns changed and
    kept their scores; rows deleted are gone from the source.
    """

    target: str
    rows_in: int
    rows_scored: int
    rows_failed: dict[str, int]
    rows_refreshed: int
    rows_deleted: int
    report: str | None
    mlflow_run_id: str


@dataclass
class Recorder:
    """What a run adds to its record while it goes on."""

    batches: MicroBatches
    run: tracking.Run
    progress: Progress
    rows_done: Any
    versions: stream.VersionsRead = field(default_factory=stream.VersionsRead)
    report: str | None = None

    def show(self) -> None:
        """Tell how many rows are done: those in the model count already."""
        done = self.batches.totals.rows
        if self.rows_done is not None:
            done = max(done, self.rows_done.value)
        expected = self.batches.rows_expected
        self.progress(done, None if expected is None else max(done, expected))


@contextmanager
def recorded(
    spark: "SparkSession",
    job: Job,
    command: str,
    *,
    now: datetime,
    progress: Progress,
    stages: str | None = None,
    how: Write | None = None,
    finish: Callable[[Recorder], None] | None = None,
) -> Iterator[Recorder]:
    """Record what happens inside as a run: in MLflow as it happens, and then in a bill.

    `stages` names the folder of what is scored and not committed yet, that of this run if it is
    not given; `how` is the job's, if not given. A `retry`, whose rows have failed before, has no
    budget of errors.
    `finish` is called once all rows are in, before the bill is written.
    """
    params = _params(job)
    with tracking.start_run(
        name=f"{command} {job.target}", params=params, tags={"lakescore.command": command}
    ) as run:
        run.log_source(job.source.table, job.source.version)
        # Of rows in the model Spark Connect cannot tell: there micro-batches are the progress.
        rows_done = None if is_connect(spark) else spark.sparkContext.accumulator(0)
        batches = MicroBatches(
            job,
            run,
            now=now,
            how=how or job.config.write,
            budget=None if command == "retry" else job.config.limits.max_error_fraction,
            stages=f"{job.checkpoint}/{stages or f'{folder_of_run(run.id)}/stage'}",
            rows_done=rows_done,
        )
        recorder = Recorder(batches, run, progress, rows_done)
        try:
            yield recorder
            batches.end(spark)
            progress(batches.totals.rows, batches.totals.rows)
            if finish is not None:
                finish(recorder)
        except BaseException as error:
            try:
                _write_bill(spark, job, command, recorder, now, error)
            except Exception as unwritten:  # of any kind: the run's own error is what is raised
                said = unwritten if isinstance(unwritten, LakescoreError) else type(unwritten)
                logger.warning("the run's bill was not written: %s", said)
            raise
        try:
            _write_bill(spark, job, command, recorder, now, None)
        except TableError as error:
            raise TableError(
                f"{error}; all rows are in {job.target}, only the bill of this run is missing"
            ) from error
        reached("bill_written")


def summary_of(job: Job, recorder: Recorder) -> RunSummary:
    """Return what a run did."""
    totals = recorder.batches.totals
    return RunSummary(
        target=job.target,
        rows_in=totals.rows,
        rows_scored=totals.scored,
        rows_failed=totals.failed,
        rows_refreshed=totals.refreshed,
        rows_deleted=totals.deleted,
        report=recorder.report,
        mlflow_run_id=recorder.run.id,
    )


def _write_bill(
    spark: "SparkSession",
    job: Job,
    command: str,
    recorder: Recorder,
    now: datetime,
    error: BaseException | None,
) -> None:
    totals, seconds = recorder.batches.totals, recorder.batches.seconds
    made = bill.Bill(
        run_id=recorder.run.id,
        command=command,
        status="finished" if error is None else "failed",
        # Of an error that is not lakescore's own only its kind: it may quote a row.
        error=None
        if error is None
        else (str(error) if isinstance(error, LakescoreError) else type(error).__name__),
        source=job.source.table,
        source_version_first=recorder.versions.first,
        source_version_last=recorder.versions.last,
        rows_in=totals.rows,
        rows_scored=totals.scored,
        rows_failed=totals.failed,
        rows_refreshed=totals.refreshed,
        rows_deleted=totals.deleted,
        tokens=totals.tokens,
        seconds=seconds,
        rows_per_second=totals.rows / max(seconds, 1e-9),
        models=job.plan.versions,
        fingerprints=job.plan.fingerprints,
        started_at=now,
        ended_at=datetime.now(UTC),
    )
    bill.write(spark, job.target, made)


def _params(job: Job) -> Mapping[str, object]:
    """Return the run's parameters: the whole configuration, what the models were, the version."""
    params: dict[str, object] = {"source.version": job.source.version}

    def flatten(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                flatten(f"{prefix}.{key}" if prefix else key, inner)
        elif value is not None:
            params[prefix] = value

    flatten("", job.config.model_dump(exclude={"mlflow"}))  # whose URIs may hold a password
    for task, version in job.plan.versions.items():
        params[f"tasks.{task}.version"] = version
        params[f"tasks.{task}.fingerprint"] = job.plan.fingerprints[task]
    return params
