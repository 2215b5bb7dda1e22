"""The command line: `lakescore score|rescore|retry|purge|evaluate|finetune|register|report|doctor`.

Results go to stdout, the last line as JSON; all else goes to stderr.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import click

from lakescore import __version__
from lakescore.config import Aggregation, JobConfig, MlflowConfig, TaskName
from lakescore.errors import BusyError, LakescoreError, in_a_line, was_interrupted
from lakescore.progress import show_progress

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Command = Callable[..., Any]
# The exit code where another run of the same job is at work; every other error is a 1.
BUSY = 3

SET_OPTION = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the configuration, as in --set target.table=out/scored.",
)


@click.group()
@click.version_option(__version__, prog_name="lakescore")
@click.option("--debug", is_flag=True, help="Show the traceback of an error (anywhere).")
def cli(debug: bool) -> None:
    """Score the text of Delta tables with Hugging Face models, on Spark."""
    del debug  # `main` has taken it
    # pyspark prints Java's stack trace as a page of JSON, beside the exception that holds it too.
    # py4j prints what a micro-batch raises, which the command says itself.
    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger", "py4j"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Of Ctrl-C it prints a traceback, by the logger of all.
    logging.getLogger().addFilter(lambda said: KeyboardInterrupt not in (said.exc_info or ()))
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")


def job_options(command: Command, *, required: bool = True) -> Command:
    """Add a job's configuration, and the options that say what is to be otherwise in it."""
    command = click.option(
        "--default",
        "defaults",
        multiple=True,
        metavar="KEY=VALUE",
        help="Give a key that the configuration leaves out a value, if it has the key's group.",
    )(command)
    config = click.argument("config", required=required, type=click.Path(path_type=Path))
    return config(SET_OPTION(command))


def mlflow_options(command: Command) -> Command:
    """Add the options that say where MLflow's stores are."""
    for name, text in [
        ("--experiment", "MLflow's experiment."),
        ("--registry-uri", "MLflow's model registry."),
        ("--tracking-uri", "MLflow's store; sqlite:///mlflow.db outside Databricks."),
    ]:
        command = click.option(name, default=None, help=text)(command)
    return command


def mlflow_config(
    tracking_uri: str | None, registry_uri: str | None, experiment: str | None
) -> MlflowConfig:
    """Take MLflow's stores from the options."""
    given = {
        "tracking_uri": tracking_uri,
        "registry_uri": registry_uri,
        "experiment": experiment,
    }
    return with_store(MlflowConfig.parse(given, origin="command line"))


def with_store(config: MlflowConfig) -> MlflowConfig:
    """Name the store where nobody did: on a laptop it is a file in this folder."""
    is_named = config.tracking_uri is not None or "MLFLOW_TRACKING_URI" in os.environ
    if is_named or on_databricks():
        return config
    return config.model_copy(update={"tracking_uri": "sqlite:///mlflow.db"})


def on_databricks() -> bool:
    """Tell whether this process runs on a Databricks cluster."""
    return "DATABRICKS_RUNTIME_VERSION" in os.environ


@contextmanager
def session() -> Iterator["SparkSession"]:
    """Use the session that is there, on Databricks or by SPARK_REMOTE; else start a local one."""
    if on_databricks() or "SPARK_REMOTE" in os.environ:
        from pyspark.sql import SparkSession

        yield SparkSession.builder.getOrCreate()
        return
    from lakescore.session import local_session

    with local_session() as spark:
        # In place of pyspark's, which calls Java in the middle of another call.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield spark


@cli.command()
@job_options
def score(config: Path, **given: tuple[str, ...]) -> None:
    """Score what is new in CONFIG's source table into its target."""
    from lakescore.job import score_table

    _run_job(score_table, config, given)


@cli.command()
@click.option("--stale", is_flag=True, help="The rows of another model version than the current.")
@job_options
def rescore(config: Path, stale: bool, **given: tuple[str, ...]) -> None:
    """Score rows of CONFIG's target again: with --stale, those of another model version."""
    from lakescore.rescore import rescore_table

    if not stale:
        raise click.UsageError(
            "which rows? --stale takes those of another model version; to score the whole source "
            "again by the same one, use score with another target.table"
        )
    _run_job(rescore_table, config, given)


@cli.command()
@job_options
def retry(config: Path, **given: tuple[str, ...]) -> None:
    """Score again the rows of CONFIG's target whose error may pass, as out_of_memory."""
    from lakescore.rescore import retry_table

    _run_job(retry_table, config, given)


def _run_job(run: Callable[..., Any], config: Path, given: Mapping[str, tuple[str, ...]]) -> None:
    """Run one of the jobs that a configuration describes, and print what it did."""
    from lakescore.places import job_tables

    job = JobConfig.load(config, **given)
    job_tables(job)  # what is missing is said before Spark starts
    job = job.model_copy(update={"mlflow": with_store(job.mlflow)})
    with session() as spark, show_progress() as progress:
        summary = run(spark, job, now=datetime.now(UTC), progress=progress)
    click.echo(json.dumps(asdict(summary), ensure_ascii=False))


@cli.command()
@click.option(
    "--retain-hours",
    type=click.FloatRange(min=0),
    default=168,
    show_default=True,
    help="Files that the table gave up longer ago are removed; 0 takes older versions at once.",
)
@job_options
def purge(config: Path, retain_hours: float, **given: tuple[str, ...]) -> None:
    """Remove from the files of CONFIG's target what was deleted from it."""
    from lakescore.purge import purge_target

    job = JobConfig.load(config, **given)
    with session() as spark:
        purged = purge_target(spark, job, retain_hours=retain_hours)
    click.echo(json.dumps(asdict(purged), ensure_ascii=False))


@cli.command()
@click.argument("table")
@click.option(
    "--output",
    default=Path("reports/report.html"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="The HTML file to write.",
)
@click.option("--text-column", default="text", show_default=True, help="The column of the texts.")
@click.option("--key", "keys", multiple=True, help="A column that identifies a row (repeatable).")
@mlflow_options
def report(
    table: str, output: Path, text_column: str, keys: tuple[str, ...], **stores: str | None
) -> None:
    """Write one HTML page about TABLE, the target of a score job, by name or path."""
    from lakescore import tracking
    from lakescore.report import write_report

    at = mlflow_config(**stores)
    tracking.configure(at.tracking_uri, at.experiment, registry_uri=at.registry_uri)
    with session() as spark:
        path = write_report(spark, table, output, text_column=text_column, key=keys)
    click.echo(json.dumps({"table": table, "report": str(path)}, ensure_ascii=False))


@cli.command()
@click.argument("table")
@click.option("--model", required=True, help="A folder, org/name@revision, models:/… or runs:/….")
@click.option("--task", required=True, type=click.Choice(get_args(TaskName)))
@click.option("--tokens-column", default="tokens", show_default=True, help="Entities: the words.")
@click.option("--tags-column", default="tags", show_default=True, help="Entities: their BIO tags.")
@click.option("--text-column", default="text", show_default=True, help="Sentiment: the text.")
@click.option("--label-column", default="label", show_default=True, help="Sentiment: its label.")
@click.option("--labels", default=None, help="Entities: the types that count, as PER,ORG,LOC.")
@click.option(
    "--aggregation",
    default="first",
    show_default=True,
    type=click.Choice(get_args(Aggregation)),
    help="Entities: how the tokens of a word agree.",
)
@mlflow_options
def evaluate(
    table: str,
    model: str,
    task: Any,
    tokens_column: str,
    tags_column: str,
    text_column: str,
    label_column: str,
    labels: str | None,
    aggregation: Any,
    **stores: str | None,
) -> None:
    """Compare a model with the labels of TABLE: Delta, or Parquet by its path."""
    from lakescore import evaluation
    from lakescore.labelled import ColumnsConfig

    columns = ColumnsConfig(
        tokens=tokens_column, tags=tags_column, text=text_column, label=label_column
    )
    with session() as spark:
        result = evaluation.evaluate(
            spark,
            table,
            task=task,
            model=model,
            columns=columns,
            types=[each.strip() for each in labels.split(",") if each.strip()] if labels else None,
            aggregation=aggregation,
            mlflow=mlflow_config(**stores),
        )
    figures = result.as_metrics()
    width = max(map(len, figures))
    for name, value in figures.items():
        click.echo(f"{name:<{width}}  {value:,.4f}", err=True)
    about = {"table": table, "model": result.model, "mlflow_run_id": result.mlflow_run_id}
    click.echo(json.dumps(about | figures, ensure_ascii=False))


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@SET_OPTION
def finetune(config: Path, overrides: tuple[str, ...]) -> None:
    """Fine-tune an encoder as CONFIG says, and write a checkpoint."""
    from lakescore.finetune import FinetuneConfig, finetune

    logging.getLogger("lakescore").setLevel(logging.INFO)
    recipe = FinetuneConfig.load(config, overrides)
    recipe = recipe.model_copy(update={"mlflow": with_store(recipe.mlflow)})
    with session() as spark:
        result = finetune(spark, recipe)
    found = asdict(result) | {"output": str(result.output)}
    click.echo(json.dumps(found, ensure_ascii=False))


@cli.command()
@click.option("--model", required=True, help="A folder, or org/name@commit on the Hub.")
@click.option("--name", required=True, help="The registered model's name.")
@click.option("--alias", default=None, help="An alias to set on the version, such as champion.")
@mlflow_options
def register(model: str, name: str, alias: str | None, **stores: str | None) -> None:
    """Register a model with MLflow, so that a job can name it as models:/NAME@ALIAS."""
    from lakescore import tracking
    from lakescore.snapshot import resolve

    at = mlflow_config(**stores)
    tracking.configure(at.tracking_uri, at.experiment, registry_uri=at.registry_uri)
    version = tracking.register(resolve(model, task=None), name=name, alias=alias)
    click.echo(json.dumps(asdict(version) | {"uri": version.uri}, ensure_ascii=False))


@cli.command()
@partial(job_options, required=False)
def doctor(config: Path | None, **given: tuple[str, ...]) -> None:
    """Say what is here and what is missing; CONFIG's models and stores are looked at too."""
    from lakescore import doctor

    models: dict[Any, str] = {}
    at = mlflow_config(None, None, None)
    if config is not None:
        job = JobConfig.load(config, **given)
        at = with_store(job.mlflow)
        models = {name: task.model for name, task in job.tasks if task is not None}
    found = doctor.checks(models=models, tracking_uri=at.tracking_uri, registry_uri=at.registry_uri)
    click.echo(doctor.render(found))
    sys.exit(doctor.exit_code(found))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error of lakescore's own is a line or two, not a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments  # wherever it stands
    own = [each for each in arguments if each != "--debug"]
    try:
        # Not standalone: that ends in SystemExit(0), which a Databricks task takes for a failure.
        if code := cli(own, prog_name="lakescore", standalone_mode=False):
            sys.exit(code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        _stop()
    except Exception as error:
        if debug:
            raise
        if was_interrupted(error):
            _stop()
        if isinstance(error, LakescoreError):
            click.echo(f"{type(error).__name__}: {error}", err=True)
            sys.exit(BUSY if isinstance(error, BusyError) else 1)
        # Spark's and MLflow's own, whose tracebacks are pages long.
        click.echo(f"{in_a_line(error)}\n--debug shows all of it", err=True)
        sys.exit(1)


def _stop() -> NoReturn:
    click.echo("stopped", err=True)
    sys.exit(130)


if __name__ == "__main__":
    main()
