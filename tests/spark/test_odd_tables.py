"""Tables that few have: odd keys, columns, folders and constraints, and what others did to them."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import (
    BudgetError,
    ConfigError,
    JobConfig,
    RefusedRowsError,
    TableError,
    rescore_table,
)
from tests.jobs import NOW, ROWS, Run
from tests.spark.test_changes import add, changed, content, feed, follow

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


@pytest.mark.parametrize(
    ("key", "rows"),
    [
        pytest.param(
            "CAST(k AS string)",
            "VALUES (X'80'), (X'81'), (X'FF7A'), (encode('ok', 'UTF-8')) AS rows(k)",
            id="no-utf-8",
        ),
        pytest.param(
            "date_from_unix_date(k)",
            "VALUES (-719162), (0), (4000000) AS rows(k)",  # 0001-01-01 and +12921-08-07
            id="dates",
        ),
    ],
)
def test_a_key_that_python_has_no_value_for_is_followed(
    spark: "SparkSession", settings: dict[str, Any], run: Run, key: str, rows: str
) -> None:
    columns = [f"{key} AS k", "concat('Anna ', CAST(k AS string)) AS text"]
    source = make(spark, settings, rows, *columns)
    target = settings["target"]["table"]
    settings = changed(settings, source={"table": source, "key": "k", "changes": "cdf"})
    told = ["CAST(CAST(k AS string) AS binary)", "text"]
    for done in (lambda: None, lambda: spark.sql(f"UPDATE delta.`{source}` SET text = 'Porto'")):
        done()
        assert run(settings).rows_in == len(pairs(spark, source, told))
        assert pairs(spark, target, told) == pairs(spark, source, told)


def test_a_variant_is_carried_and_compared(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    if spark.version < "4.1":
        pytest.skip("Delta 4.0 cannot read a variant beside a deletion vector, Spark 3.5 has none")
    value = "parse_json('{\"a\": ' || id || '}') AS v"
    source = make(spark, settings, "range(3)", "id", "'Anna' AS text", value)
    settings = changed(settings, source={"table": source, "changes": "cdf"})
    told = ["id", "to_json(v)"]
    assert run(settings).rows_in == 3
    spark.sql(f"UPDATE delta.`{source}` SET v = parse_json('[1]') WHERE id = 1")
    assert run(settings).rows_in == 0
    assert pairs(spark, settings["target"]["table"], told) == pairs(spark, source, told)
    assert run(follow(settings, "snapshot")).rows_in == 0


def test_a_folder_with_the_signs_of_a_pattern_is_as_any_other(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"] + "[20]{a}*"
    settings = changed(settings, target={"table": target})
    run(settings)
    add(spark, source, [(100, "new")])
    assert run(settings).rows_in == 1
    assert run(follow(settings, "snapshot")).rows_in == 0
    add(spark, source, [(101, "newer")])
    assert run(settings).rows_in == 1
    assert content(spark, target) == content(spark, source)
    notes = spark.sql(f"DESCRIBE HISTORY delta.`{target}`").where("userMetadata LIKE '%number%'")
    assert notes.where("userMetadata LIKE '%lakescore-None%'").count() == 0


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
def test_a_key_that_others_doubled_in_the_target_is_counted_and_a_run_after_mends_it(
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
    run(settings)
    assert content(spark, target) == content(spark, source)


def test_a_run_after_one_that_was_over_its_budget_counts_what_it_has_before_it(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source = f"{settings['source']['table']}_made"
    for begin, bad in (0, 3), (20, 4):  # a file each, read one after the other
        rows = spark.range(begin, begin + 20, 1, 1)
        rows = rows.selectExpr("id", f"IF(id < {begin + bad}, NULL, 'Anna') AS text")
        rows.write.format("delta").mode("append").save(source)
    settings = changed(
        settings,
        source={"table": source, "max_files": 1, "partitions": 1},
        limits={"max_error_fraction": 0.16},
    )
    for failed, rows in (7, 40), (4, 20):
        with pytest.raises(BudgetError, match=f"{failed} of {rows} rows failed"):
            run(settings)
    assert run(changed(settings, limits={"max_error_fraction": 0.2})).rows_in == 20


def test_a_key_that_sql_takes_for_a_variable_is_followed(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    rows = "VALUES ('{spark.app.name}'), ('{env:HOME}'), (' it''s') AS rows(k)"
    source = make(spark, settings, rows, "concat('$', k) AS k", "'Anna' AS text")
    target = settings["target"]["table"]
    append = changed(settings, source={"table": source, "key": "k"})
    run(append)
    spark.sql(f"INSERT INTO delta.`{source}` SELECT * FROM delta.`{source}` WHERE k LIKE '%app%'")
    with pytest.raises(TableError, match=r"1 of 1 new rows have a key \(k\) that"):
        run(append)
    spark.sql(f"DELETE FROM delta.`{source}` WHERE k LIKE '%app%'")
    run(follow(append, "snapshot"))
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Porto' WHERE k LIKE '%HOME%'")
    run(follow(append, "cdf"))
    assert pairs(spark, target, ["k", "text"]) == pairs(spark, source, ["k", "text"])
    spark.sql(f"DELETE FROM delta.`{source}`")
    assert run(follow(append, "cdf")).rows_deleted == 2
    assert pairs(spark, target, ["k"]) == []


def test_a_path_that_sql_takes_for_a_variable_is_refused(
    settings: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    with pytest.raises(TableError, match=r"\$\{spark.app.name\}: holds \$\{, where Spark's SQL"):
        run(changed(settings, target={"table": f"{tmp_path}/${{spark.app.name}}"}))


def test_what_changes_inside_maps_is_refreshed_and_what_does_not_is_left(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    def value(time: str) -> str:
        inner = f"map(named_struct('b', X'01'), TIMESTAMP'2024-01-01 00:00:00.{time}')"
        return f"named_struct('none', CAST(NULL AS map<int, int>), 'many', array({inner}, NULL))"

    columns = ["id", "'Anna' AS text", f"{value('000001')} AS v"]
    source = make(spark, settings, "range(3)", *columns)
    settings = changed(settings, source={"table": source, "changes": "snapshot"})
    assert run(settings).rows_in == 3
    assert run(settings).rows_refreshed == 0
    spark.sql(f"UPDATE delta.`{source}` SET v = {value('000002')} WHERE id = 1")
    spark.sql(f"UPDATE delta.`{source}` SET v = NULL WHERE id = 2")
    summary = run(settings)
    assert (summary.rows_in, summary.rows_refreshed) == (0, 2)
    told = ["id", "CAST(v AS string)"]
    assert pairs(spark, settings["target"]["table"], told) == pairs(spark, source, told)


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
    again = rescore_table(spark, config, now=NOW, progress=lambda done, total: None)
    assert again.rows_in == 2
    assert pairs(spark, target, ["id"]) == pairs(spark, source, ["id"])


def test_a_key_that_the_source_has_twice_is_not_blamed_on_the_target(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source = settings["source"]["table"]
    settings = changed(settings, source={"columns": ["id"]})
    target = run(settings).target
    spark.sql(f"UPDATE delta.`{target}` SET model = map('entities', 'old')")
    spark.sql(f"INSERT INTO delta.`{source}` SELECT * FROM delta.`{source}` WHERE id = 7")
    config = JobConfig.parse(settings)
    with pytest.raises(TableError, match=rf"^{source}: 1 keys \(id\) are there more than once"):
        rescore_table(spark, config, now=NOW, progress=lambda done, total: None)


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
    assert content(spark, target) == {}
    shutil.rmtree(bills)
    assert run(settings).rows_in == len(ROWS)


def test_rows_without_a_key_are_refused_beside_any_other_change(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    feed(spark, source)
    settings = follow(settings, "cdf")
    before = run(settings).rows_in
    add(spark, source, [(None, "nobody"), (None, "no one")])
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Anna' WHERE id = 1")
    with pytest.raises(RefusedRowsError, match=r"source.key \(id\) is null in \d rows"):
        run(settings)
    spark.sql(f"DELETE FROM delta.`{source}` WHERE text = 'no one'")
    with pytest.raises(RefusedRowsError, match=r"source.key \(id\) is null in 1 rows"):
        run(settings)
    assert len(content(spark, target)) == before
    spark.sql(f"DELETE FROM delta.`{source}` WHERE id IS NULL")
    assert run(follow(settings, "snapshot")).rows_in == 1
    assert content(spark, target) == content(spark, source)


def test_columns_of_every_type_are_carried(
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
    ]
    source = make(spark, settings, "range(2)", *columns, "concat('Anna ', id) AS text")
    own = {"table": source, "changes": "cdf", "key": ["flag", "price", "at", "local", "day"]}
    settings = changed(settings, source=own)
    assert run(settings).rows_in == 2
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Porto', bytes = X'00' WHERE flag")
    assert run(settings).rows_in == 1
    names = ["flag", "price", "local", "bytes", "list", "pair", "ratio", "text"]
    assert pairs(spark, settings["target"]["table"], names) == pairs(spark, source, names)
    assert run(follow(settings, "snapshot")).rows_in == 0


def test_a_feed_of_columns_that_are_not_carried_may_have_any_name(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    columns = ["id", "concat('Anna ', id) AS text", "'x' AS _change", "id AS net"]
    source = make(spark, settings, "range(3)", *columns)
    own = {"table": source, "columns": ["text"], "changes": "cdf"}
    settings = changed(settings, source=own)
    assert run(settings).rows_in == 3
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Porto', _change = 'y' WHERE id = 1")
    assert run(settings).rows_in == 1
    assert content(spark, settings["target"]["table"]) == content(spark, source)
    with pytest.raises(TableError, match="column '_change' has the name of a column that"):
        run(changed(settings, source=own | {"text": "_change"}))
    with pytest.raises(TableError, match=r"column 'labels' is map<.*, which cannot be compared"):
        labels = spark.sql("SELECT map('a', 1) AS labels, 'Anna' AS text")
        labels.write.format("delta").save(f"{source}_labels")
        of_labels = {"table": f"{source}_labels", "key": "labels", "changes": "snapshot"}
        run(changed(settings, source=own | of_labels))


def test_a_table_of_others_in_the_place_of_the_bills_is_left_alone(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    bills = f"{settings['target']['table']}_runs"
    spark.sql(f"CREATE TABLE delta.`{bills}` (id BIGINT, note STRING) USING delta")
    with pytest.raises(TableError, match=f"^{bills}: is not a table of bills, .*; rename it"):
        run(settings)
    assert spark.read.format("delta").load(bills).columns == ["id", "note"]


def test_a_target_whose_key_may_not_be_null_evolves(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    from delta.tables import DeltaTable

    source, target = settings["source"]["table"], settings["target"]["table"]
    run(changed(settings, target={"table": f"{target}_made"}))
    columns = spark.read.format("delta").load(f"{target}_made").schema
    columns["id"].nullable = False
    DeltaTable.create(spark).location(target).addColumns(columns).execute()
    run(settings)
    spark.sql(f"ALTER TABLE delta.`{source}` ADD COLUMNS (place string)")
    spark.sql(f"INSERT INTO delta.`{source}` VALUES (100, 'Anna', 'Porto')")
    assert run(changed(settings, target={"evolve": True})).rows_in == 1
    assert ("Porto",) in pairs(spark, target, ["coalesce(place, '')"])


def test_a_row_that_is_only_refreshed_keeps_to_the_targets_constraints_and_is_not_logged(
    spark: "SparkSession", settings: dict[str, Any], run: Run, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    columns = ["id", "concat('Secret ', id) AS text", "CAST(NULL AS string) AS place"]
    source, target = make(spark, settings, "range(5)", *columns), settings["target"]["table"]
    settings = changed(settings, source={"table": source, "changes": "cdf"})
    run(settings)
    spark.sql(f"ALTER TABLE delta.`{target}` ADD COLUMNS (checked string)")
    spark.sql(f"UPDATE delta.`{target}` SET checked = 'yes'")
    spark.sql(f"ALTER TABLE delta.`{target}` ADD CONSTRAINT seen CHECK (checked = 'yes')")
    apart = "place IS NULL OR place <> text"
    spark.sql(f"ALTER TABLE delta.`{target}` ADD CONSTRAINT apart CHECK ({apart})")
    settings = changed(settings, target={"evolve": True})
    spark.sql(f"UPDATE delta.`{source}` SET text = 'Mended' WHERE id = 1")
    assert run(settings).rows_in == 1  # what the target alone has stays
    spark.sql(f"UPDATE delta.`{source}` SET place = text WHERE id = 2")
    with pytest.raises(RefusedRowsError, match="drop apart, to which 1 rows do not keep"):
        run(settings)
    assert "Secret" not in capfd.readouterr().err
    assert pairs(spark, target, ["checked", "place"]) == [("yes", None)] * 5


def test_texts_that_the_target_lacks_in_part_are_the_sources(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    add(spark, source, [(nth, f"Anna {nth}") for nth in range(100, 103)])
    run(changed(settings, source={"columns": []}))
    settings = changed(settings, source={"columns": ["text"]}, target={"evolve": True})
    add(spark, source, [(200, "new")])
    run(settings)
    spark.sql(f"UPDATE delta.`{target}` SET model = map('entities', 'old') WHERE id >= 50")
    config = JobConfig.parse(settings)
    again = rescore_table(spark, config, now=NOW, progress=lambda done, total: None)
    assert (again.rows_in, again.rows_scored) == (14, 13)  # 50 has no text
