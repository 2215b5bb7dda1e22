"""Tables that few have: odd keys, columns, folders and constraints, and what others did to them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import BudgetError, TableError
from tests.jobs import Run
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


def test_a_constraint_without_a_value_for_a_row_is_named_and_no_row_is(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    run(settings)
    spark.sql(f"DELETE FROM delta.`{target}`")
    spark.sql(f"ALTER TABLE delta.`{target}` ADD CONSTRAINT number CHECK (CAST(text AS int) > 0)")
    add(spark, source, [(100, "secret")])
    with pytest.raises(TableError, match=r"refuses a row; drop number, to which 1 rows") as raised:
        run(settings)
    assert "secret" not in str(raised.value)


def test_a_key_that_others_doubled_in_the_target_is_counted_and_a_run_after_mends_it(
    spark: "SparkSession", settings: dict[str, Any], run: Run
) -> None:
    source, target = settings["source"]["table"], settings["target"]["table"]
    feed(spark, source)
    settings = follow(settings, "cdf")
    run(settings)
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
