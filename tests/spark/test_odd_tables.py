"""Tables that few have: odd keys, columns, folders and constraints, and what others did to them."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pyspark.sql import functions as F

from lakescore import (
    BudgetError,
    ConfigError,
    JobConfig,
    RefusedRowsError,
    RunSummary,
    TableError,
    rescore_table,
    stream,
)
from tests.jobs import NOW, ROWS, Run
from tests.spark.steps import add, changed, content, feed, follow

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.delta]


def make(spark: "SparkSession", settings: dict[str, Any], rows: str, *columns: str) -> str:
    """Make another source of columns in SQL over some rows, with a change feed; return its path."""
    table = f"{settings['source']['table']}_made"
    spark.sql(f"SELECT {', '.join(columns)} FROM {rows}").write.format("delta").save(table)
    feed(spark, table)
    return table


def pairs(spark: "SparkSession", table: str, columns: Sequence[str]) -> list[Any]:
    return sorted(spark.read.format("delta").load(table).selectExpr(*columns).collect())


def test_keys_that_python_or_sql_has_no_value_for_are_followed(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    rows = "VALUES (X'80', -99999, '{spark.app.name}'), (X'81', 0, '{env:HOME}'), "
    rows += "(X'FF7A', 4000000, ' it''s'), (encode('ok', 'UTF-8'), 0, 'x') AS rows(a, b, c)"
    columns = [
        "CAST(a AS string) AS k",  # some are not UTF-8
        "date_from_unix_date(b) AS day",  # 1696-03-18 to +12921-08-07
        "concat('$', c) AS name",
        "concat('Anna ', CAST(a AS string)) AS text",
    ]
    source, target = make(spark, settings, rows, *columns), settings["target"]["table"]
    own = {"table": source, "key": ["k", "day", "name"], "changes": "cdf"}
    settings = changed(settings, source=own)
    told = ["CAST(k AS binary)", "unix_date(day)", "name", "text"]
    assert run(settings).rows_in == 4
    assert pairs(spark, target, told) == pairs(spark, source, told)
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Porto' WHERE k <> 'ok'")
    spark.sql(f"DELETE FROM delta.`{source}` WHERE name LIKE '%app%'")
    summary = run(settings)
    assert (summary.rows_in, summary.rows_deleted) == (2, 1)
    assert pairs(spark, target, told) == pairs(spark, source, told)
    again = spark.read.format("delta").load(source).where("name LIKE '%HOME%'")
    again.write.format("delta").save(f"{source}_other")
    other = {"table": f"{source}_other", "changes": "append"}
    with pytest.raises(TableError, match=r"1 of 1 new rows have a key \(k, day, name\) that"):
        run(changed(settings, source=other, target={"checkpoint": f"{target}_other"}))


@pytest.mark.usefixtures("begun")
def test_a_constraint_without_a_value_for_a_row_is_named_and_no_row_is(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    spark.sql(f"DELETE FROM delta.`{target}`")
    spark.sql(f"ALTER TABLE delta.`{target}` ADD CONSTRAINT number CHECK (CAST(text AS int) > 0)")
    add(spark, source, [(100, "secret")])
    with pytest.raises(TableError, match=r"refuses a row; drop number, to which 1 rows") as raised:
        run(settings)
    assert "secret" not in str(raised.value)


@pytest.mark.usefixtures("followed")
def test_a_key_that_others_doubled_in_the_target_is_counted_and_a_snapshot_mends_it(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    settings = follow(settings, "cdf")
    spark.sql(f"INSERT INTO delta.`{target}` SELECT * FROM delta.`{target}` WHERE id = 7")
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Anna in Porto' WHERE id = 7")
    for changes in ("cdf", "snapshot"):
        with pytest.raises(TableError, match=r"target: has 1 keys \(id\) more than once.*delete "):
            run(follow(settings, changes))
    spark.sql(f"DELETE FROM delta.`{target}` WHERE id = 7")
    run(follow(settings, "snapshot"))
    assert content(spark, target) == content(spark, source)


def test_a_run_over_its_budget_keeps_its_first_micro_batch_and_one_after_counts_the_rest(
    spark: "SparkSession", settings: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = f"{settings['source']['table']}_made", settings["target"]["table"]
    for begin, bad in (0, 3), (20, 4):  # a file each, read one after the other
        rows = spark.range(begin, begin + 20, 1, 1)
        rows = rows.selectExpr("id", f"IF(id < {begin + bad}, NULL, 'Anna') AS text")
        rows.write.format("delta").mode("append").save(source)
    settings = changed(
        settings,
        source={"table": source, "max_files": 1, "partitions": 1},
        limits={"max_error_fraction": 0.16},
    )
    monkeypatch.setattr(stream, "POLL_SECONDS", 600)
    for failed, rows in (7, 40), (4, 20):
        with pytest.raises(BudgetError, match=f"{failed} of {rows} rows failed"):
            run(settings)
        assert content(spark, target).keys() == {*range(20)}
    bills = spark.read.format("delta").load(f"{target}_runs").orderBy("ended_at").collect()
    assert [(row.rows_in, row.source_version_first) for row in bills] == [(20, 1), (0, None)]
    assert run(changed(settings, limits={"max_error_fraction": 0.2})).rows_in == 20
    assert content(spark, target) == content(spark, source)


def test_a_path_that_sql_takes_for_a_variable_is_refused(
    settings: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    with pytest.raises(TableError, match=r"\$\{spark.app.name\}: holds \$\{, where Spark's SQL"):
        run(changed(settings, target={"table": f"{tmp_path}/${{spark.app.name}}"}))


def test_a_column_that_sql_takes_for_a_variable_is_refused_before_there_is_a_target(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source = f"{settings['source']['table']}_odd"
    name = "${spark.app.name}"
    rows = spark.range(2).selectExpr("id", "'Anna' AS text").withColumn(name, F.lit(1))
    rows.write.format("delta").option("delta.columnMapping.mode", "name").save(source)
    job = changed(settings, source={"table": source})
    with pytest.raises(TableError, match=r"^\$\{spark.app.name\}: holds \$\{, where Spark's SQL"):
        run(job)
    assert not Path(job["target"]["table"]).exists()
    assert run(changed(job, source={"columns": ["id"]})).rows_in == 2


@pytest.mark.usefixtures("begun")
def test_a_target_of_varchar_is_refused_since_delta_would_log_what_it_refuses(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    target = settings["target"]["table"]
    columns = spark.read.format("delta").load(target).schema
    said = ", ".join(
        f"{each.name} {'varchar(5)' if each.name == 'text' else each.dataType.simpleString()}"
        for each in columns
    )
    spark.sql(f"CREATE TABLE delta.`{target}_short` ({said}) USING delta")
    with pytest.raises(TableError, match=r"'text' is varchar\(5\), the job's is string; choose"):
        run(changed(settings, target={"table": f"{target}_short"}))


def test_a_text_whose_column_the_target_cannot_have_is_scored_by_every_command(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = f"{settings['source']['table']}_made", settings["target"]["table"]
    rows = spark.sql("SELECT id, concat('Anna ', id) AS `my text` FROM range(3)")
    rows.write.format("delta").option("delta.columnMapping.mode", "name").save(source)
    own = {"table": source, "text": "my text", "columns": ["id"]}
    settings = changed(settings, source=own)
    assert run(settings).rows_in == 3
    rows.selectExpr("id + 10 AS id", "`my text`").write.format("delta").mode("append").save(source)
    assert run(follow(settings, "snapshot")).rows_in == 3
    spark.sql(f"UPDATE delta.`{target}` SET model = map('entities', 'old') WHERE id < 2")
    config = JobConfig.parse(settings)
    again = rescore_table(spark, config, now=NOW)
    assert again.rows_in == 2
    assert pairs(spark, target, ["id"]) == pairs(spark, source, ["id"])


def test_the_source_by_another_spelling_is_no_target(
    spark: "SparkSession", settings: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    source = settings["source"]["table"]
    columns = spark.read.format("delta").load(source).columns
    link = tmp_path / "link"
    link.symlink_to(source)
    for name in (f"file:{source}", str(link)):
        with pytest.raises(ConfigError, match=r"is .*, the source; name another table"):
            run(changed(settings, target={"table": name, "evolve": True}))
    assert spark.read.format("delta").load(source).columns == columns


def test_bills_that_cannot_be_written_are_an_error_before_anything_is_scored(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    target = settings["target"]["table"]
    bills = Path(f"{target}_runs")
    bills.touch()
    with pytest.raises(TableError, match=r"_runs: cannot be made \(File exists\)"):
        run(settings)
    bills.unlink()
    spark.sql("SELECT 1 AS run_id").write.format("delta").save(str(bills))
    with pytest.raises(TableError, match="its column 'run_id' is int, that of a bill is string"):
        run(settings)
    shutil.rmtree(bills)
    spark.sql(f"CREATE TABLE delta.`{bills}` (id BIGINT, note STRING) USING delta")
    with pytest.raises(TableError, match=f"^{bills}: is not a table of bills, .*; rename it"):
        run(settings)
    assert spark.read.format("delta").load(str(bills)).columns == ["id", "note"]
    assert content(spark, target) == {}


@pytest.mark.usefixtures("followed")
def test_rows_without_a_key_are_refused_beside_any_other_change(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    settings, before = follow(settings, "cdf"), content(spark, target)
    add(spark, source, [(None, "nobody"), (None, "no one")])
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Anna' WHERE id = 1")
    with pytest.raises(RefusedRowsError, match=r"source.key \(id\) is null in \d rows"):
        run(settings)
    spark.sql(f"DELETE FROM delta.`{source}` WHERE text = 'no one'")
    with pytest.raises(RefusedRowsError, match=r"source.key \(id\) is null in 1 rows"):
        run(settings)
    assert content(spark, target) == before
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id IS NULL")
    assert run(follow(settings, "snapshot")).rows_in == 1
    assert content(spark, target) == content(spark, source)


def test_columns_of_every_type_are_carried_and_compared(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    columns = [
        "id % 2 = 0 AS flag",
        "CAST(id AS decimal(20, 2)) AS price",
        "timestamp_millis(id) AS at",
        "CAST(timestamp_millis(id) AS timestamp_ntz) AS local",
        "date_from_unix_date(CAST(id AS int)) AS day",
        "CAST(id AS double) / 3 AS ratio",
        "CAST(CAST(id AS string) AS binary) AS bytes",
        "array(id, NULL) AS list",
        "named_struct('id', id) AS pair",
        "CAST(id AS tinyint) AS small",
        "concat('Anna ', id) AS text",
    ]
    told = ["flag", "price", "local", "bytes", "list", "pair", "ratio", "small", "text"]
    new = "small = 7"
    # Delta 4.0 cannot read a variant beside a deletion vector, Spark 3.5 has none.
    if spark.version >= "4.1":
        columns.append("parse_json('{\"a\": ' || id || '}') AS v")
        told.append("to_json(v)")
        new = "v = parse_json('[1]')"
    source, target = make(spark, settings, "range(2)", *columns), settings["target"]["table"]
    own = {"table": source, "changes": "cdf", "key": ["flag", "price", "at", "local", "day"]}
    settings = changed(settings, source=own)
    assert run(settings).rows_in == 2
    assert pairs(spark, target, told) == pairs(spark, source, told)
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Porto', bytes = X'00' WHERE flag")
    spark.sql(f"UPDATE delta.`{source}` SET {new} WHERE NOT flag")
    summary = run(settings)
    assert (summary.rows_in, summary.rows_refreshed) == (1, 1)
    assert pairs(spark, target, told) == pairs(spark, source, told)
    summary = run(follow(settings, "snapshot"))
    assert (summary.rows_in, summary.rows_refreshed) == (0, 0)


def test_columns_may_have_names_that_the_job_has_for_its_own_inside(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    names = ["_net", "_added", "_last", "_nth", "null", "net"]
    columns = [f"7 AS `{name}`" for name in (*names, "_change")]  # which is not carried
    columns += ["id AS times", "concat('Anna ', id) AS text"]
    source, target = make(spark, settings, "range(3)", *columns), settings["target"]["table"]
    own = {"table": source, "key": "times", "columns": ["text", *names], "changes": "cdf"}
    settings = changed(settings, source=own)
    told = ["times", "text", *(f"`{name}`" for name in names)]
    assert run(settings).rows_in == 3
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Porto', _change = 8 WHERE times = 1")
    spark.sql(f"UPDATE delta.`{source}` SET _net = 70, _nth = 100 WHERE times = 2")
    summary = run(settings)
    assert (summary.rows_in, summary.rows_refreshed) == (1, 1)
    assert pairs(spark, target, told) == pairs(spark, source, told)
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Anna', _change = 9 WHERE times = 1")
    spark.sql(f"UPDATE delta.`{source}` SET _last = 70, `null` = 100 WHERE times = 2")
    summary = run(follow(settings, "snapshot"))
    assert (summary.rows_in, summary.rows_refreshed) == (1, 1)
    assert pairs(spark, target, told) == pairs(spark, source, told)


@pytest.mark.usefixtures("begun")
def test_a_target_whose_key_may_not_be_null_evolves(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    from delta.tables import DeltaTable

    source, target = settings["source"]["table"], settings["target"]["table"]
    columns = spark.read.format("delta").load(target).schema
    columns["id"].nullable = False
    DeltaTable.create(spark).location(f"{target}_strict").addColumns(columns).execute()
    spark.sql(f"ALTER TABLE delta.`{source}` ADD COLUMNS (place string)")
    spark.sql(f"INSERT INTO delta.`{source}` VALUES (100, 'Anna', 'Porto')")
    strict = changed(settings, target={"table": f"{target}_strict", "evolve": True})
    assert run(strict).rows_in == len(ROWS) + 1
    assert ("Porto",) in pairs(spark, f"{target}_strict", ["coalesce(place, '')"])


def test_a_row_that_is_only_refreshed_keeps_its_scores_and_to_the_targets_constraints_unlogged(
    spark: "SparkSession", settings: dict[str, Any], run: Run, logged: Callable[[], str]
) -> None:
    columns = ["id", "concat('Secret ', id) AS text", "CAST(NULL AS string) AS place"]
    source, target = make(spark, settings, "range(5)", *columns), settings["target"]["table"]
    settings = changed(settings, source={"table": source, "changes": "cdf"})
    first = run(settings)
    spark.sql(f"ALTER TABLE delta.`{target}` ADD COLUMNS (checked string)")
    spark.sql(f"UPDATE delta.`{target}` SET checked = 'yes'")
    spark.sql(f"ALTER TABLE delta.`{target}` ADD CONSTRAINT seen CHECK (checked = 'yes')")
    apart = "place IS NULL OR place <> text"
    spark.sql(f"ALTER TABLE delta.`{target}` ADD CONSTRAINT apart CHECK ({apart})")
    settings = changed(settings, target={"evolve": True})
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Mended' WHERE id = 1")
    spark.sql(f"UPDATE delta.`{source}` SET place = 'Porto' WHERE id = 3")
    second = run(settings)
    assert (second.rows_in, second.rows_refreshed) == (1, 1)
    spark.sql(f"UPDATE delta.`{source}` SET place = text WHERE id = 2")
    with pytest.raises(RefusedRowsError, match="drop apart, to which 1 rows do not keep"):
        run(settings)
    assert "Secret" not in logged()
    row = "SELECT 9 AS id, 'Secret' AS text, 'Secret' AS place, 'yes' AS checked, 1 AS n_tokens"
    with pytest.raises(Exception, match="CHECK constraint apart"):  # of Delta, which logs the row
        spark.sql(f"INSERT INTO delta.`{target}` BY NAME {row}")
    assert "Secret" in logged()
    rows = {row.id: row for row in spark.read.format("delta").load(target).collect()}
    assert {row.checked for row in rows.values()} == {"yes"}  # what the target alone has stays
    assert [rows[nth].place for nth in range(5)] == [None, None, None, "Porto", None]
    runs = [rows[nth].run_id for nth in range(5)]
    assert runs == [first.mlflow_run_id, second.mlflow_run_id, *[first.mlflow_run_id] * 3]


@pytest.mark.usefixtures("begun")
def test_texts_that_the_target_lacks_are_the_sources_and_so_is_a_double_key_of_theirs(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    old = "model = map('entities', 'old')"
    spark.sql(f"UPDATE delta.`{target}` SET {old} WHERE id >= 50")
    # As rows are from before the text's column was added.
    spark.sql(f"UPDATE delta.`{target}` SET text = NULL WHERE id > 55")
    spark.sql(f"INSERT INTO delta.`{source}` VALUES (57, 'Maria 57 lives in Lisbon')")
    config = JobConfig.parse(settings)

    def rescore() -> RunSummary:
        return rescore_table(spark, config, now=NOW)

    with pytest.raises(TableError, match=rf"^{source}: 1 keys \(id\) are there more than once"):
        rescore()
    spark.sql(f"RESTORE delta.`{source}` TO VERSION AS OF 0")
    again = rescore()
    assert (again.rows_in, again.rows_scored) == (10, 9)  # 50 has no text
