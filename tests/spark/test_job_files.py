"""The files in jobs/ as Databricks starts them: with the wheel alone, in a Spark that is there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lakescore.session import DELTA_SETTINGS, LAPTOP_SETTINGS
from tests.conftest import ROOT
from tests.jobs import BRIEF_JVM, SMALL_JOBS
from tests.tiny_models import tiny_model

pytestmark = [pytest.mark.spark, pytest.mark.delta]

# A cluster runs the tasks of a job one after the other in one driver, whose `spark` is its own.
CLUSTER = """
import contextlib, io, json, runpy, sys
import lakescore
from pyspark.sql import SparkSession

spark = SparkSession.builder.getOrCreate()
print(json.dumps(lakescore.__file__))
for kind, what, *arguments in json.load(sys.stdin):
    if kind == "sql":
        spark.sql(what)
        continue
    sys.argv = [what, *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(what, run_name="__main__")
    print(printed.getvalue().splitlines()[-1])
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has the wheel installed, and nothing else."""
    folder = tmp_path_factory.mktemp("library")
    project = folder / "project"
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        project.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, project)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "lib", project / "lib", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    alone = ["--no-deps", "--no-index"]
    wheel = ["wheel", *alone, "--no-build-isolation", "--wheel-dir", str(folder), str(project)]
    subprocess.run([*pip, *wheel], check=True)
    [built] = folder.glob("*.whl")
    target = folder / "site"
    subprocess.run([*pip, "install", *alone, "--target", str(target), str(built)], check=True)
    return target


def run(folder: Path, library: Path, tasks: list[Any]) -> list[Any]:
    """Run tasks on a cluster of one's own; return where the library is, and what each job said."""
    from delta import configure_spark_with_delta_pip
    from pyspark.sql import SparkSession

    delta = configure_spark_with_delta_pip(SparkSession.builder)._options
    settings = LAPTOP_SETTINGS | DELTA_SETTINGS | SMALL_JOBS | BRIEF_JVM | delta
    settings |= {"spark.master": "local[2,4]", "spark.sql.warehouse.dir": f"{folder}/warehouse"}
    conf = folder / "conf"
    (conf / "spark-defaults.conf").write_text(
        "".join(f"{name} {value}\n" for name, value in settings.items())
    )
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER],
        cwd=folder,
        env=os.environ
        | {"DATABRICKS_RUNTIME_VERSION": "18.0", "SPARK_CONF_DIR": str(conf)}
        | {"PYTHONPATH": str(library), "PYTHONSAFEPATH": "1", "PYSPARK_PYTHON": sys.executable},
        input=json.dumps(tasks),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, "\n".join(
        line for line in done.stderr.splitlines() if not line.lstrip().startswith("at ")
    )[-5000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_job_file_does_its_work(library: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "files"
    shutil.copytree(ROOT / "jobs", workspace / "jobs")
    (tmp_path / "conf").mkdir()
    store = f"sqlite:///{tmp_path}/mlflow.db"
    models = {
        "entities": tiny_model(tmp_path / "models/entities"),
        "sentiment": tiny_model(tmp_path / "models/sentiment", head="sequence-classification"),
    }
    config = {
        "source": {"key": ["id"]},
        "tasks": {task: {"model": f"models:/{task}@champion"} for task in models},
        "mlflow": {"tracking_uri": store},
    }
    (workspace / "score.yml").write_text(yaml.safe_dump(config))
    labelled = f"delta.`{tmp_path}/labelled`"
    recipe = {
        "task": "sentiment",
        "base": str(models["sentiment"]),
        "output": "nowhere",
        "labels": ["negative", "positive"],
        "train": {f"{tmp_path}/labelled": 1.0},
        "valid": {f"{tmp_path}/labelled": 1.0},
        "epochs": 1,
        "mlflow": {"tracking_uri": store},
    }
    (workspace / "finetune.yml").write_text(yaml.safe_dump(recipe))
    source, target = f"delta.`{tmp_path}/source`", f"delta.`{tmp_path}/target`"
    arguments = [
        str(workspace / "score.yml"),
        f"--set=source.table={tmp_path}/source",
        f"--set=target.table={tmp_path}/target",
        "--set=mlflow.experiment=jobs",
    ]

    def job(name: str, *given: str) -> list[str]:
        return ["job", str(workspace / "jobs" / f"{name}.py"), *given]

    def registered(task: str, model: str) -> list[str]:
        stores = [f"--tracking-uri={store}", "--experiment=jobs"]
        return job("register", f"--model={model}", f"--name={task}", "--alias=champion", *stores)

    tasks = [
        ["sql", f"CREATE TABLE {source} USING delta AS SELECT id, concat('Text ', id) AS text "
                "FROM range(40)"],
        ["sql", f"CREATE TABLE {labelled} USING delta AS SELECT concat('so late ', id) AS text, "
                "CAST(id % 2 AS int) AS label FROM range(20)"],
        *(registered(task, str(model)) for task, model in models.items()),
        job("score", *arguments),
        job("score", *arguments),
        ["sql", f"INSERT INTO {source} VALUES (100, 'Anna'), (101, NULL)"],
        ["sql", f"UPDATE {source} SET text = 'Now' WHERE id = 3"],
        ["sql", f"DELETE FROM {source} WHERE id < 2"],
        job("backfill", *arguments),
        ["sql", f"UPDATE {target} SET sentiment = NULL, entities = NULL, error = "
                "named_struct('code', 'worker_lost', 'detail', 'gone') WHERE id IN (4, 5)"],
        job("retry", *arguments),
        job("finetune", str(workspace / "finetune.yml"), f"--set=output={tmp_path}/tuned"),
        registered("sentiment", f"{tmp_path}/tuned"),
        job("rescore", "--stale", *arguments),
        job("purge", "--retain-hours=0", *arguments[:3]),
    ]  # fmt: skip
    at, one, other, first, again, filled, retried, tuned, second, rescored, purged = run(
        tmp_path, library, tasks
    )
    assert Path(at).is_relative_to(library)
    assert (one["version"], other["version"], second["version"]) == (1, 1, 2)
    assert (first["rows_in"], again["rows_in"]) == (40, 0)
    assert (filled["rows_in"], filled["rows_failed"]) == (3, {"null_text": 1})
    assert filled["rows_deleted"] == 2
    assert retried["rows_scored"] == 2
    assert tuned["output"] == f"{tmp_path}/tuned"
    assert rescored["rows_in"] == 40
    assert purged["target"] == f"{tmp_path}/target"
