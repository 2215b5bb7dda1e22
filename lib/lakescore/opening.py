"""What a job works on: its tables and models are found, checked, and held while it is at work."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakescore import tracking
from lakescore.config import JobConfig, TasksConfig
from lakescore.errors import ConfigError
from lakescore.failpoints import reached
from lakescore.frame import RUN_COLUMNS, carried_columns, score_with
from lakescore.places import RUNS, checkpoint_of, folder_in, job_tables
from lakescore.plan import Plan, make_plan
from lakescore.tables import (
    HASH,
    bill,
    check_seen,
    commits,
    load,
    names,
    remove,
    source,
    target,
    writers,
)
from lakescore.tables.lock import alone

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


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run works on: a configuration whose tables and models were found and checked.

    Attributes:
        config: the settings.
        source: the table that is read.
        target: the table that is written.
        target_version: its version before the run.
        location: the folder of its files, with its scheme.
        outdated: its columns whose value would not belong to a new score: of tasks that the job has
            not, and of the text if the job does not carry it.
        is_shared: whether it has rows of another source, too.
        checkpoint: the folder of what the job remembers.
        plan: the models.
        carried: the columns of the source that the target has, the key first.
        schema: the target's.
    """

    config: JobConfig
    source: source.Source
    target: str
    target_version: int
    location: str
    outdated: tuple[str, ...]
    is_shared: bool
    checkpoint: str
    plan: Plan
    carried: tuple[str, ...]
    schema: "StructType"

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that identify a row."""
        return self.config.source.key

    @property
    def results(self) -> tuple[str, ...]:
        """The columns that scoring makes, with those of the run."""
        return (*(name for name, _ in self.plan.result_columns), *RUN_COLUMNS)

    @property
    def writer(self) -> writers.Writer:
        """What the target is to record of the job, in each of its modes with more."""
        at, text = names.place(self.source.table), self.config.source.text
        return writers.Writer(source=at, id=self.source.id, key=self.key, text=text)

    @property
    def digest(self) -> str:
        """Tell runs that score alike, and into the same columns, from others."""
        told = [
            self.plan.fingerprints,
            self.config.tasks.model_dump(),
            self.config.encoding.model_dump(),
            [each.jsonValue() for each in self.schema],
            [self.key, self.config.source.text, self.config.source.changes],
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


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
    found = source.find(spark, at, needs_feed=makes_target and config.source.changes == "cdf")
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
        target.warn_of_statistics(to, there, at_target.properties, text=config.source.text)
        folder = folder_in(checkpoint, at_target)
        outdated = _outdated_tasks(to, there, schema)
        # retry and rescore take the text from the target: it has to stay
        if makes_target and config.source.text in there and config.source.text not in schema.names:
            outdated.append(config.source.text)
        if is_alone:
            remove(spark, f"{folder}/{RUNS}")  # of runs that were killed
        yield Job(
            config=config,
            source=found,
            target=to,
            target_version=names.version(spark, to),
            location=at_target.location,
            outdated=tuple(outdated),
            is_shared=any(each.id != found.id for each in writers.of(at_target.properties)),
            checkpoint=folder,
            plan=plan,
            carried=tuple(carried),
            schema=schema,
        )


def _outdated_tasks(target: str, columns: list[str], schema: "StructType") -> list[str]:
    """Return a target's columns of tasks that the job has not, and say what becomes of them."""
    found = [
        name for name in TasksConfig.model_fields if name in columns and name not in schema.names
    ]
    if found:
        logger.warning(
            "%s: has scores of a task that the job has not (%s): this run sets them to null in the "
            "rows that it scores; let one job do all tasks of a target",
            target,
            ", ".join(found),
        )
    return found


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
