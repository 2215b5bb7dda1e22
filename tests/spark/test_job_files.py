"""The files in jobs/, as Databricks starts them: the wheel alone, in a Spark that is there."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.jobs import tasks_done
from tests.tiny_models import tiny_model

pytestmark = [pytest.mark.spark, pytest.mark.delta]


def do_every_job(
    library: Path, folder: Path, changes: str, *, server: str | None = None
) -> dict[str, Any]:
    """Let each file in jobs/ do its work, one after the other, and check what each says.

    That is in a Spark of its own, as in dedicated access mode, or on a Connect server. Return the
    settings with which all of the target was scored at the end.
    """
    workspace = folder / "files"
    shutil.copytree(ROOT / "jobs", workspace / "jobs")
    shutil.copytree(ROOT / "conf", workspace / "conf")
    stores = {"tracking_uri": f"sqlite:///{folder}/mlflow.db", "experiment": "jobs"}
    models = {
        "entities": tiny_model(folder / "models/entities"),
        "sentiment": tiny_model(folder / "models/sentiment", head="sequence-classification"),
    }
    config = yaml.safe_load((ROOT / "conf/score.yml").read_text("utf-8"))
    config["source"]["changes"] = changes
    config["encoding"]["dtype"] = "float32"  # or scores would hang on how texts are batched
    config["mlflow"] = stores
    (workspace / "conf/score.yml").write_text(yaml.safe_dump(config))
    recipe = {
        "task": "sentiment",
        "base": str(models["sentiment"]),
        "output": "nowhere",
        "labels": ["negative", "positive"],
        "train": {f"{folder}/labelled": 1.0},
        "valid": {f"{folder}/labelled": 1.0},
        "epochs": 1,
        "mlflow": stores,
    }
    (workspace / "conf/finetune.yml").write_text(yaml.safe_dump(recipe))
    source, target, labelled = (
        f"delta.`{folder}/{name}`" for name in ("source", "target", "labelled")
    )
    arguments = [
        str(workspace / "conf/score.yml"),
        f"--set=source.table={folder}/source",
        f"--set=target.table={folder}/target",
        *(f"--default=tasks.{task}.model=models:/{task}@champion" for task in models),
    ]

    def job(name: str, *given: str) -> list[str]:
        return ["job", str(workspace / "jobs" / f"{name}.py"), *given]

    def registered(task: str, model: str) -> list[str]:
        at = [f"--tracking-uri={stores['tracking_uri']}", "--experiment=jobs"]
        return job("register", f"--model={model}", f"--name={task}", "--alias=champion", *at)

    tasks = [
        ["sql", f"CREATE TABLE {source} USING delta AS SELECT id, concat('Text ', id) AS text "
                "FROM range(40)"],
        ["sql", f"CREATE TABLE {labelled} USING delta AS SELECT concat('so late ', id) AS text, "
                "CAST(id % 2 AS int) AS label FROM range(20)"],
        *(registered(task, str(model)) for task, model in models.items()),
        job("score", *arguments),
        ["sql", f"INSERT INTO {source} SELECT id, IF(id = 101, NULL, 'Anna') FROM range(100, 110)"],
        job("score", *arguments),
        ["sql", f"UPDATE {source} SET text = 'Now' WHERE id = 3"],
        ["sql", f"DELETE FROM {source} WHERE id < 2"],
        job("backfill", *arguments),
        ["sql", f"UPDATE {target} SET sentiment = NULL, entities = NULL, error = "
                "named_struct('code', 'worker_lost', 'detail', 'gone') WHERE id IN (4, 5)"],
        job("retry", *arguments),
        job("finetune", str(workspace / "conf/finetune.yml"), f"--set=output={folder}/tuned"),
        registered("sentiment", f"{folder}/tuned"),
        job("rescore", "--stale", *arguments),
        job("purge", "--retain-hours=0", *arguments),
    ]  # fmt: skip
    at, one, other, first, more, filled, retried, tuned, second, rescored, purged = tasks_done(
        folder, library, tasks, server=server
    )
    assert Path(at).is_relative_to(library)
    assert (one["version"], other["version"], second["version"]) == ("1", "1", "2")
    assert first["rows_in"] == 40
    assert (more["rows_in"], more["rows_failed"]) == (10, {"null_text": 1})
    assert (filled["rows_in"], filled["rows_deleted"]) == (1, 2)
    assert retried["rows_scored"] == 2
    assert tuned["output"] == f"{folder}/tuned"
    assert rescored["rows_in"] == 48
    assert purged["target"] == f"{folder}/target"
    models["sentiment"] = folder / "tuned"
    return {
        "source": {"table": f"{folder}/source"},
        "target": {"table": f"{folder}/target"},
        "tasks": {task: {"model": str(model)} for task, model in models.items()},
    }


def test_every_job_file_does_its_work_in_dedicated_access_mode(
    library: Path, tmp_path: Path
) -> None:
    do_every_job(library, tmp_path, "append")
