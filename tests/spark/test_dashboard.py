"""The dashboard's queries, on what a run leaves; its widgets show columns that these have."""

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOT
from tests.jobs import ROWS

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.delta]
FILE = ROOT / "conf/dashboards/lakescore.lvdash.json"
DASHBOARD = json.loads(FILE.read_text("utf-8"))


def query_of(dataset: dict[str, Any]) -> str:
    return "".join(dataset["queryLines"])


@pytest.mark.usefixtures("begun")
def test_every_query_runs_and_counts_what_the_job_did(
    spark: "SparkSession", settings: dict[str, Any]
) -> None:
    target = settings["target"]["table"]
    failed = sum(text is None for _, text in ROWS)
    found = {}
    for dataset in DASHBOARD["datasets"]:
        given = {each["keyword"] for each in dataset["parameters"]}
        assert set(re.findall(r":(\w+)", query_of(dataset))) == given
        # A name in quotes for IDENTIFIER, as the dashboard has one; here the table is a path.
        query = query_of(dataset).replace(
            "IDENTIFIER(:target || '_runs')", f"delta.`{target}_runs`"
        )
        query = query.replace("IDENTIFIER(:target)", f"delta.`{target}`")
        query = query.replace(":euros_per_hour", "'3.6'")
        found[dataset["name"]] = spark.sql(query).toPandas()
    [billed] = found["runs"].to_dict("records")
    assert (billed["rows_in"], billed["rows_failed"]) == (len(ROWS), failed)
    assert billed["euros"] == pytest.approx(billed["seconds"] / 1000)
    [total] = found["totals"].to_dict("records")
    assert (total["rows"], total["failed_share"]) == (len(ROWS), failed / len(ROWS))
    errors = dict(zip(found["errors"]["code"], found["errors"]["rows"], strict=True))
    assert errors == {"null_text": failed}
    assert found["labels"]["rows"].sum() == len(ROWS) - failed
    assert found["entities"]["entities"].sum() > 0
    [cost] = found["cost"].to_dict("records")
    assert cost["euros_per_million_rows"] == pytest.approx(billed["euros"] / len(ROWS) * 1e6)

    shown = 0
    for page in DASHBOARD["pages"]:
        for each in page["layout"]:
            for query in (one["query"] for one in each["widget"]["queries"]):
                columns = found[query["datasetName"]].columns
                for field in query.get("fields", ()):
                    [column] = re.findall(r"`(\w+)`", field["expression"])
                    assert column in columns, each["widget"]["name"]
                    shown += 1
    assert shown > 20


def test_widgets_do_not_overlap() -> None:
    for page in DASHBOARD["pages"]:
        taken: set[tuple[int, int]] = set()
        for each in page["layout"]:
            at = each["position"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["width"])
                for y in range(at["y"], at["y"] + at["height"])
            }
            assert not cells & taken, each["widget"]["name"]
            assert at["x"] + at["width"] <= 6
            taken |= cells
