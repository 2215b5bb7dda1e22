"""The job: what is new in a source table, scored and appended to a target, recorded in MLflow."""

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakescore import metrics, tables, tracking
from lakescore.config import JobConfig, check_output
from lakescore.distribute import is_connect
from lakescore.errors import SetupError, TableError
from lakescore.frame import score_with
from lakescore.plan import Plan, make_plan
from lakescore.progress import Progress

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

PARTITIONS_PER_SLOT = 4
POLL_SECONDS = 1


@dataclass(frozen=True)
class RunSummary:
    """What a job did: the last line that it prints."""

    target: str
    rows_in: int
    rows_scored: int
    rows_failed: dict[str, int]
    report: str | None
    mlflow_run_id: str


def score_table(
    spark: "SparkSession", config: JobConfig, *, now: datetime, progress: Progress
) -> RunSummary:
    """Score what is new in the source table and append it to the target, in one MLflow run.

    Args:
        spark: the session to use.
        config: the job; must name source.table, source.key and target.table.
        now: the time to write into the column `scored_at`.
        progress: is called every second or so.

    Raises:
        ConfigError: the job lacks a table, a key or a checkpoint.
        ModelError: a model cannot be resolved, is unsafe, or does not fit its task.
        SetupError: the session is one of Spark Connect.
        TableError: the source is missing, or does not fit the target.
    """
    from pyspark.errors import StreamingQueryException
    from pyspark.sql import functions as F

    if is_connect(spark):
        raise SetupError(
            "the job needs a classic Spark session, and this one is of Spark Connect; run it in "
            "dedicated access mode, or use lakescore.score and write its rows"
        )
    if config.report is not None:  # else a long run would end in that error
        check_output(Path(config.report))
    tracking.configure(
        config.mlflow.tracking_uri,
        config.mlflow.experiment,
        registry_uri=config.mlflow.registry_uri,
    )
    source, target = tables.job_tables(config)
    source_version = tables.version(spark, source)
    stream = tables.read_new(spark, source, max_bytes=config.source.max_bytes)
    made = make_plan(spark, config.tasks, config.encoding)
    rows_done = spark.sparkContext.accumulator(0)
    # Counted here, not by Spark's numInputRows: that has rows which a deletion vector hides.
    read = _spread(stream, config.source.partitions).observe(
        metrics.READ, F.count(F.lit(1)).alias(metrics.ROWS)
    )
    scored = score_with(made, read, config, rows_done=rows_done)
    scored = scored.withColumn("run_id", F.lit("")).withColumn("scored_at", F.lit(now))
    tables.check_target(spark, target, scored.schema)
    checkpoint = tables.checkpoint_of(target, config.target.checkpoint)
    tables.check_checkpoint(spark, target, checkpoint)
    rows_before = tables.count(spark, target)
    rows_in_all = max(tables.count(spark, source) - rows_before, 0)

    with tracking.start_run(
        name=f"score {target}", params=_params(config, made, source_version), tags={}
    ) as run:
        run.log_source(source, source_version)
        counts = metrics.observations([each.task for each in made.tasks])
        observed = scored.withColumn("run_id", F.lit(run.id)).observe(metrics.WRITTEN, *counts)
        totals = metrics.Totals()
        began = time.monotonic()
        query = tables.append(observed, target, checkpoint)
        last, is_done, has_gap = -1, False, False
        try:
            while not is_done:
                is_done = bool(query.awaitTermination(POLL_SECONDS))
                for batch in tables.committed(query, after=last):
                    has_gap |= last >= 0 and batch.number != last + 1
                    last = batch.number
                    rows_in = int(batch.observed[metrics.READ][metrics.ROWS])
                    totals.add(batch.observed[metrics.WRITTEN], rows_in=rows_in)
                    run.log_metrics(totals.metrics(time.monotonic() - began), step=last)
                done = max(totals.rows, rows_done.value)
                progress(done, max(done, rows_in_all))
        except StreamingQueryException as error:
            if (known := tables.stopped(error, source, target, checkpoint)) is None:
                raise
            raise known from error
        finally:
            query.stop()
        if has_gap:  # a store that did not answer held this loop up for too long
            of_this_run = tables.load(spark, target).where(F.col("run_id") == run.id)
            totals = metrics.Totals.recounted(of_this_run.agg(*counts).head())
            run.log_metrics(totals.metrics(time.monotonic() - began), step=last)
        if totals.rows_in != totals.rows:
            raise TableError(
                f"{target}: {totals.rows_in} rows were read and {totals.rows} written by run "
                f"{run.id}; restore the version before it, and report this"
            )
        progress(totals.rows, totals.rows)
        report = _report(spark, config, target, run)
    return RunSummary(
        target=target,
        rows_in=totals.rows_in,
        rows_scored=totals.rows - sum(totals.failed.values()),
        rows_failed=totals.failed,
        report=report,
        mlflow_run_id=run.id,
    )


def _spread(df: "DataFrame", partitions: int | None) -> "DataFrame":
    """Divide rows over all the tasks that can run at once: one small file would be one task."""
    slots = df.sparkSession.sparkContext.defaultParallelism
    return df.repartition(partitions or slots * PARTITIONS_PER_SLOT)


def _params(config: JobConfig, plan: Plan, source_version: int) -> dict[str, object]:
    """Return the run's parameters: the whole configuration, what the models were, the version."""
    params: dict[str, object] = {"source.version": source_version}

    def flatten(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                flatten(f"{prefix}.{key}" if prefix else key, inner)
        elif value is not None:
            params[prefix] = value

    flatten("", config.model_dump(exclude={"mlflow"}))  # whose URIs may hold a password
    for each in plan.tasks:
        params[f"tasks.{each.task.name}.version"] = each.snapshot.version
        params[f"tasks.{each.task.name}.fingerprint"] = each.snapshot.fingerprint
    return params


def _report(spark: "SparkSession", config: JobConfig, target: str, run: tracking.Run) -> str | None:
    """Write the report about the whole target, where the job asks for one."""
    if config.report is None or not tables.exists(spark, target):  # no row was ever there
        return None
    from lakescore.report import write_report

    source = config.source
    path = write_report(
        spark, target, Path(config.report), text_column=source.text, key=source.key, log_to=run
    )
    return str(path)
