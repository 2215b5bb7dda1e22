import json
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import (
    ConfigError,
    JobConfig,
    RunSummary,
    TableError,
    score_table,
    tracking,
)
from tests.conftest import ROOT
from tests.jobs import NOW, ROWS, Run
from tests.spark.steps import follow

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.delta]


def test_a_job_scores_every_row_once_and_records_it(
    spark: "SparkSession", settings: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    progress: list[tuple[int, int | None]] = []
    summary = run(settings | {"report": str(tmp_path / "report.html")}, progress)
    assert summary == RunSummary(
        target=settings["target"]["table"],
        rows_in=60,
        rows_scored=54,
        rows_failed={"null_text": 6},
        rows_refreshed=0,
        rows_deleted=0,
        report=str(tmp_path / "report.html"),
        mlflow_run_id=summary.mlflow_run_id,
    )
    assert progress[-1] == (60, 60)

    target = spark.read.format("delta").load(summary.target)
    assert target.columns == [
        "id", "text", "entities", "sentiment", "n_tokens", "error", "model", "run_id", "scored_at",
        "text_hash",
    ]  # fmt: skip
    rows = {row.id: row for row in target.collect()}
    assert {number: row.text for number, row in rows.items()} == dict(ROWS)
    assert {row.run_id for row in rows.values()} == {summary.mlflow_run_id}
    assert {row.scored_at.replace(tzinfo=UTC) for row in rows.values()} == {NOW}

    figures = tracking.run_figures(summary.mlflow_run_id)
    assert figures is not None
    found = figures.metrics
    assert (found["rows"], found["rows_scored"], found["errors/null_text"]) == (60, 54, 6)
    assert found["tokens"] == sum(row.n_tokens for row in rows.values())
    entities = [each for row in rows.values() for each in row.entities or []]
    assert sum(v for k, v in found.items() if k.startswith("entities/")) == len(entities)
    assert found["entities_mean_score"] == pytest.approx(
        sum(each.score for each in entities) / len(entities)
    )
    scored = [row.sentiment for row in rows.values() if row.sentiment]
    positive = sum(each.label == "positive" for each in scored)
    assert found["sentiment_share/positive"] == pytest.approx(positive / 54)
    assert figures.params["tasks.entities.model"] == settings["tasks"]["entities"]["model"]
    assert len(figures.params["tasks.entities.fingerprint"]) == 64
    assert figures.params["source.version"] == "0"


@pytest.mark.usefixtures("begun")
def test_a_rerun_adds_no_rows_and_a_grown_source_only_its_new_ones(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    more = spark.createDataFrame([(100, "Anna"), (101, " ")], "id long, text string")
    more.write.format("delta").mode("append").save(settings["source"]["table"])
    summary = run(settings)
    assert (summary.rows_in, summary.rows_failed) == (2, {"blank_text": 1})
    assert run(settings).rows_in == 0
    more.selectExpr("id + 100 AS id", "text").write.format("delta").mode("append").save(
        settings["source"]["table"]
    )
    assert run(settings).rows_in == 2
    by_run = spark.read.format("delta").load(summary.target).groupBy("run_id").count().collect()
    assert sorted(row["count"] for row in by_run) == [2, 2, 60]
    target = spark.read.format("delta").load(summary.target)
    assert sorted(row.id for row in target.collect()) == [*range(60), 100, 101, 200, 201]


def test_an_empty_source_is_no_error(
    spark: "SparkSession", settings: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    empty = str(tmp_path / "empty")
    spark.createDataFrame([], "id long, text string").write.format("delta").save(empty)
    report = str(tmp_path / "report.html")
    summary = run(settings | {"source": {"table": empty, "key": "id"}, "report": report})
    assert (summary.rows_in, summary.rows_scored, summary.rows_failed) == (0, 0, {})


@pytest.mark.usefixtures("begun")
def test_each_commit_carries_its_transaction(
    spark: "SparkSession", settings: dict[str, Any]
) -> None:
    target = settings["target"]["table"]
    log = Path(target) / "_delta_log"
    lines = [line for file in sorted(log.glob("*.json")) for line in file.read_text().splitlines()]
    actions = [json.loads(line) for line in lines]
    [transaction] = [each["txn"] for each in actions if "txn" in each]
    notes = [
        json.loads(e["commitInfo"].get("userMetadata", "{}")) for e in actions if "commitInfo" in e
    ]
    registered, note = [each for each in notes if each]
    assert registered.keys() == {"source"}
    [stream] = Path(f"{target}_checkpoint").glob("*/stream-*")
    query = json.loads((stream / "metadata").read_text())["id"]
    assert (transaction["appId"], transaction["version"]) == (f"lakescore-{query}", 0)
    assert (note["app"], note["number"]) == (f"lakescore-{query}", 0)
    assert note["sums"]["rows"] == 60
    rows = spark.read.format("delta").load(target).select("run_id").distinct().collect()
    assert [row.run_id for row in rows] == [note["run_id"]]


def test_a_table_in_the_catalog_is_named_by_its_name(
    spark: "SparkSession", settings: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    rows = spark.read.format("delta").load(settings["source"]["table"])
    rows.write.format("delta").saveAsTable("messages")
    checkpoint = str(tmp_path / "checkpoint")
    named = settings | {
        "source": {"table": "messages", "key": "id"},
        "target": {"table": "scored", "checkpoint": checkpoint},
    }
    assert run(named).rows_in == 60
    assert spark.table("scored").count() == 60
    spark.sql("drop table scored")
    spark.sql("drop table messages")


def test_a_relative_path_is_one_of_pythons_working_folder(
    spark: "SparkSession",
    settings: dict[str, Any],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # that of the JVM stays
    here = settings | {"target": {"table": "here/scored"}}
    assert run(here).rows_in == 60
    assert run(follow(here, "snapshot")).rows_in == 0
    assert spark.read.format("delta").load(str(tmp_path / "here/scored")).count() == 60
    assert not (ROOT / "here").exists()  # where the JVM is


def test_a_source_that_is_not_there_is_named(settings: dict[str, Any], run: Run) -> None:
    with pytest.raises(TableError, match=r"/none: no Delta table under this path; name the folder"):
        run(settings | {"source": {"table": "/none", "key": "id"}})
    with pytest.raises(TableError, match="none: no Delta table under this name"):
        run(settings | {"source": {"table": "none", "key": "id"}})


def test_a_source_that_is_not_delta_is_named(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    spark.sql("create or replace temporary view seen as select 1L id, 'a' text")
    named = settings | {"source": {"table": "seen", "key": "id"}}
    with pytest.raises(TableError, match=r"^seen: is not a Delta table; name one, or save it with"):
        run(named)
    with pytest.raises(TableError, match=r"^a b: no Delta table under this name; name the table"):
        run(settings | {"source": {"table": "a b", "key": "id"}})


def test_a_place_that_cannot_be_written_is_named_before_anything_is_scored(
    settings: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    target = {"target": {"table": f"{tmp_path}/file/target"}}
    with pytest.raises(TableError, match=r"_checkpoint/lock: cannot be made .*; name a folder"):
        run(settings | target)
    with pytest.raises(ConfigError, match=r"/file/r.html: \w.*; name a file that can be written"):
        run(settings | {"report": f"{tmp_path}/file/r.html"})
    with pytest.raises(ConfigError, match=r": Is a directory; name a file that can be written"):
        run(settings | {"report": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"'target.table' is .*/source, the source; name another"):
        run(settings | {"target": {"table": settings["source"]["table"]}})
    assert not Path(settings["target"]["table"]).exists()


def test_a_target_with_other_columns_is_refused_and_left_as_it_is(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    target = settings["target"]["table"]
    other = spark.createDataFrame([(1, "x")], "id long, remark string")
    other.write.format("delta").save(target)
    with pytest.raises(TableError, match=r"its column '\w+' is \w+, the job's is "):
        run(settings)
    assert spark.read.format("delta").load(target).collect() == other.collect()
    evolving = {"table": target, "evolve": True}
    with pytest.raises(TableError, match=r"1 of 60 new rows have a key \(id\) that .* already"):
        run(settings | {"target": evolving})
    spark.sql(f"DELETE FROM delta.`{target}` WHERE id = 1")
    assert run(settings | {"target": evolving}).rows_in == 60
    rows = spark.read.format("delta").load(target).collect()
    assert {row.remark for row in rows} == {None} and len(rows) == 60


def test_a_folder_of_other_files_is_no_target(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    folder = Path(settings["target"]["table"])
    spark.range(3).write.parquet(str(folder))
    before = sorted(folder.iterdir())
    with pytest.raises(TableError, match="is a folder of other files"):
        run(settings)
    spark.range(3).write.format("delta").save(f"{folder}_other")
    settings["target"]["table"] = f"{folder}_other/_delta_log/inside"
    with pytest.raises(TableError, match="is inside another table's log"):
        run(settings)
    settings["target"]["table"] = settings["source"]["table"] + "/scored"
    with pytest.raises(ConfigError, match=r"in the source .*, where VACUUM removes it; name"):
        run(settings)
    settings["target"] = {"table": f"{folder}_new", "checkpoint": settings["source"]["table"]}
    with pytest.raises(ConfigError, match=r"in the table .*/source, where VACUUM removes it"):
        run(settings)
    assert sorted(folder.iterdir()) == before


@pytest.mark.usefixtures("begun")
def test_a_constraint_of_the_target_is_named_and_no_row_is(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    target, source = settings["target"]["table"], settings["source"]["table"]
    spark.sql(f"ALTER TABLE delta.`{target}` ADD CONSTRAINT few CHECK (id < 60)")
    more = spark.createDataFrame([(60, "Xylophonia")], "id long, text string")
    more.write.format("delta").mode("append").save(source)
    with pytest.raises(TableError) as raised:
        run(settings)
    assert str(raised.value).startswith(f"{target}: a constraint of it refuses a row; ")
    assert "drop few, to which 1 rows do not keep" in str(raised.value)  # seen before Delta logs it
    assert "Xylophonia" not in str(raised.value)
    assert spark.read.format("delta").load(target).count() == 60


def test_rows_that_a_deletion_vector_hides_are_not_counted(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source = settings["source"]["table"]
    spark.sql(
        f"ALTER TABLE delta.`{source}` SET TBLPROPERTIES (delta.enableDeletionVectors = true)"
    )
    frame = spark.read.format("delta").load(source).coalesce(1)
    frame.write.format("delta").mode("overwrite").save(source)  # one file, so that none goes whole
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id < 15")
    assert list(Path(source).glob("deletion_vector_*.bin"))
    summary = run(settings)
    assert (summary.rows_in, summary.rows_scored) == (45, 41)
    target = spark.read.format("delta").load(summary.target)
    assert sorted(row.id for row in target.collect()) == list(range(15, 60))


def test_no_text_of_a_row_reaches_mlflow_or_a_log(
    spark: "SparkSession",
    settings: dict[str, Any],
    run: Run,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    logged: Callable[[], str],
) -> None:
    rows = [(nth, f"Xylophonia Quuxenbaum {nth} was late " * nth) for nth in range(20)]
    frame = spark.createDataFrame(rows, "id long, text string")
    frame.write.format("delta").mode("overwrite").save(settings["source"]["table"])
    settings["encoding"] = {"long_text": "reject", "max_length": 64}
    summary = run(settings | {"report": str(tmp_path / "report.html")})
    assert summary.rows_failed.keys() == {"blank_text", "too_long"}
    printed = capfd.readouterr()
    assert "Xylophonia" not in caplog.text + printed.out + printed.err + logged()
    assert "Xylophonia" in (tmp_path / "report.html").read_text(encoding="utf-8")
    recorded = [file for file in (tmp_path / "mlruns").rglob("*") if file.is_file()]
    assert {file.suffix for file in recorded} == {".html", ".png"}
    for file in [*recorded, tmp_path / "mlflow.db"]:
        assert b"Xylophonia" not in file.read_bytes(), file


def test_a_broken_mlflow_undoes_nothing(
    spark: "SparkSession",
    settings: dict[str, Any],
    run: Run,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = tmp_path / "mlflow.db"

    def progress_breaks(done: int, total: int | None) -> None:
        store.write_bytes(b"no database")

    job = JobConfig.parse(settings)
    summary = score_table(spark, job, now=NOW, progress=progress_breaks)
    assert summary.rows_in == 60
    assert spark.read.format("delta").load(summary.target).count() == 60
    assert sum("the job goes on without it" in record.message for record in caplog.records) == 1
