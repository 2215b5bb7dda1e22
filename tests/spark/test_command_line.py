"""The command line in a folder of its own, by paths relative to it, as a newcomer starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.conftest import ROOT
from tests.jobs import ROWS

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark


def test_a_job_that_is_started_twice_in_a_new_folder_scores_each_row_once(
    spark: "SparkSession", tmp_path: Path, entity_model: Path
) -> None:
    source = spark.createDataFrame(ROWS, "id long, text string")
    source.write.format("delta").save(f"{tmp_path}/data/messages")
    job = {
        "source": {"table": "data/messages", "key": "id", "partitions": 2},
        "target": {"table": "data/scored"},
        "tasks": {"entities": {"model": str(entity_model)}},
        "mlflow": {"tracking_uri": "sqlite:///mlflow.db", "experiment": "twice"},
    }
    (tmp_path / "job.yml").write_text(yaml.safe_dump(job))
    at_once = [
        subprocess.Popen(
            [sys.executable, "-m", "lakescore.cli", "score", "job.yml"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT / "lib")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [(*process.communicate(), process.returncode) for process in at_once]
    rows = 0
    for out, err, code in said:
        if code == 3:
            assert "BusyError: " in err and "another run of this job is at work" in err
        else:
            assert code == 0, err
            rows += json.loads(out.splitlines()[-1])["rows_in"]
    assert rows == len(ROWS)
    keys = spark.read.format("delta").load(f"{tmp_path}/data/scored").select("id").collect()
    assert sorted(row.id for row in keys) == [row[0] for row in ROWS]
