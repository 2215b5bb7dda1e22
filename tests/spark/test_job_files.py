"""The file that the schedule runs, as a cluster in dedicated access mode starts it."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.jobs import tasks_done

pytestmark = [pytest.mark.spark, pytest.mark.delta]


def test_the_scheduled_job_scores_what_was_added_with_the_wheel_alone(
    library: Path, tmp_path: Path, entity_model: Path
) -> None:
    files = tmp_path / "files"
    shutil.copytree(ROOT / "jobs", files / "jobs")
    config = yaml.safe_load((ROOT / "conf/score.yml").read_text("utf-8"))
    config["tasks"] = {"entities": {"model": str(entity_model)}}
    config["mlflow"] = {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    (files / "score.yml").write_text(yaml.safe_dump(config))
    source = f"delta.`{tmp_path}/source`"
    rows = "SELECT id, concat('Anna in Porto ', id) AS text FROM range"
    score = ["job", str(files / "jobs/score.py"), str(files / "score.yml")]
    score += [f"--set=source.table={tmp_path}/source", f"--set=target.table={tmp_path}/target"]
    score += ["--set=mlflow.experiment=jobs"]
    at, first, again, more = tasks_done(
        tmp_path,
        library,
        [
            ["sql", f"CREATE TABLE {source} USING delta AS {rows}(20)"],
            score,
            score,
            ["sql", f"INSERT INTO {source} {rows}(20, 25)"],
            score,
        ],
    )
    assert Path(at).is_relative_to(library)
    assert [each["rows_scored"] for each in (first, again, more)] == [20, 0, 5]
