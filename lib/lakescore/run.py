"""One run of a job: what it works on is checked, what it does is recorded and billed."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lakescore import tracking
from lakescore.config import JobConfig, Write
from lakescore.distribute import is_connect
from lakescore.errors import ConfigError, LakescoreError, TableError
from lakescore.failpoints import reached
from lakescore.frame import carried_columns, score_with
from lakescore.microbatch import Job, MicroBatches
from lakescore.places import checkpoint_of, folder_in, job_tables
from lakescore.plan import Plan, make_plan
from lakescore.progress import Progress
from lakescore.tables import (
    HASH,
    bill,
    check_seen,
    commits,
    load,
    names,
    remove,
    source,
    stream,
    target,
    writers,
)
from lakescore.tables.lock import alone
from lakescore.todo import FOLDER, folder_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

logger = logging.getLogger(__name__)

_COMMENTS = {
    "entities": "Named entities; text[start:end] is the word",
    "sentiment": "The label of the text and its score",
    "n_tokens": "Tokens of the text without special ones",
    "error": "Why the row has no results; null where it has",
    "model": "The version of each task's model",
    "run_id": "The run that scored the row: <table>_runs, and MLflow",
    "scored_at": "When that run began",
    HASH: "xxhash64 of the text that was scored",
}


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


@contextmanager
def opened(spark: "SparkSession", config: JobConfig, *, makes_target: bool = True) -> Iterator[Job]:
    """Check a job's tables, resolve its models, and make the target where there is none.

    With `makes_target` False a target that is not there is an error. Until the job is done with,
    another run of it on this machine ends in `BusyError`.

    Raises:
        BusyError: another run of this job is at work.
        ConfigError: the job lacks a table, a key or a checkpoint.
        ModelError: a model cannot be resolved, is unsafe, or does not fit its task.
        SetupError: the session cannot number commits, as on serverless compute.
        TableError: the source is missing, or does not fit the target; or the checkpoint is where
            Spark Connect cannot remove it.
    """
    at, to = job_tables(config)
    commits.check_settings(spark)
    if not makes_target:
        load(spark, to)
    found = source.find(spark, at, needs_feed=config.source.changes == "cdf")
    if names.exists(spark, to) and names.describe(spark, to).id == found.id:
        raise ConfigError(f"'target.table' is {to}, the source; name another table")
    checkpoint = checkpoint_of(config)
    check_seen(spark, checkpoint)
    with alone(spark, f"{checkpoint}/lock", wait=False) as is_alone:
        tracking.configure(
            config.mlflow.tracking_uri,
            config.mlflow.experiment,
            registry_uri=config.mlflow.registry_uri,
        )
        plan = make_plan(spark, config.tasks, config.encoding)
        reached("planned")
        rows = load(spark, at)  # after what takes long: with the columns that it has by now
        carried = carried_columns(rows, config.source, plan)
        schema = _target_schema(rows, carried, config, plan)
        target.prepare(
            spark,
            to,
            schema,
            key=config.source.key,
            text=config.source.text,
            evolve=config.target.evolve,
            constraints=_constraints(plan),
        )
        bill.prepare(spark, to)
        reached("target_ready")
        there = load(spark, to).columns
        at_target = names.describe(spark, to)
        folder = folder_in(checkpoint, at_target)
        outdated = list(type(config.tasks).model_fields)
        if makes_target:  # else rows are scored by the text that they have
            outdated.append(config.source.text)
        if is_alone:
            remove(spark, f"{folder}/{FOLDER}")  # of runs that were killed
        yield Job(
            config=config,
            source=found,
            target=to,
            target_version=names.version(spark, to),
            location=at_target.location,
            dropped=tuple(name for name in outdated if name in there and name not in schema.names),
            is_shared=any(each.id != found.id for each in writers.of(at_target.properties)),
            checkpoint=folder,
            plan=plan,
            carried=tuple(carried),
            schema=schema,
        )


def _constraints(plan: Plan) -> dict[str, str]:
    """Return what every row of the target keeps to: name -> expression."""
    return {
        f"lakescore_{each.task.name}": f"error IS NULL OR {each.task.name} IS NULL"
        for each in plan.tasks
    } | {"lakescore_n_tokens": "n_tokens IS NOT NULL AND n_tokens >= 0"}


def _target_schema(
    rows: "DataFrame", carried: list[str], config: JobConfig, plan: Plan
) -> "StructType":
    """Return the target's columns: those of the source's that it carries, and the results."""
    from pyspark.sql import functions as F
    from pyspark.sql.types import StructField, StructType

    scored = score_with(plan, rows, carried=carried, text=config.source.text).withColumns(
        {"run_id": F.lit(""), "scored_at": F.current_timestamp(), HASH: F.lit(0).cast("bigint")}
    )

    def field(each: StructField) -> StructField:
        comment = _COMMENTS.get(each.name)
        if each.name in carried:
            comment = rows.schema[each.name].metadata.get("comment")
        return StructField(each.name, each.dataType, True, {"comment": comment} if comment else {})

    return StructType([field(each) for each in scored.schema])


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
            stages=f"{job.checkpoint}/{stages or f'{folder_of(run.id)}/stage'}",
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
