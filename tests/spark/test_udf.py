from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pyspark.sql import functions

import lakescore
from lakescore import ConfigError, ModelError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.spark


@pytest.fixture
def texts(spark: "SparkSession") -> "DataFrame":
    rows = [(1, "Maria 👍 lives in Lisbon"), (2, None), (3, "  "), (4, "so late!")]
    frame = spark.createDataFrame(rows, "id int, text string")
    if not hasattr(functions, "arrow_udf"):
        return frame  # a string that is not UTF-8 cannot be turned into pandas
    # Spark does not check a cast from binary: this is a string that is not UTF-8.
    return frame.union(spark.sql("select 5, cast(unhex('ff41') as string)"))


def test_udfs_are_columns_in_a_select(
    texts: "DataFrame", entity_model: Path, sentiment_model: Path
) -> None:
    entities = lakescore.entities(str(entity_model))
    sentiment = lakescore.sentiment(str(sentiment_model))
    named = texts.select("id", entities("text"), sentiment("text"))
    assert named.columns == ["id", "entities(text)", "sentiment(text)"]
    rows = named.toDF("id", "e", "s").collect()
    assert {row.id for row in rows if row.e is not None} == {1, 4}
    # A failed text's struct is one of nulls before Spark 4.1.
    assert {row.id for row in rows if row.s and row.s.label} == {1, 4}
    assert rows[0].e[0].asDict().keys() == {"entity_group", "word", "score", "start", "end"}


def test_udfs_are_functions_in_sql_and_their_offsets_are_sparks(
    spark: "SparkSession", texts: "DataFrame", entity_model: Path
) -> None:
    spark.udf.register("entities", lakescore.entities(str(entity_model), aggregation="simple"))
    texts.createOrReplaceTempView("texts")
    found = spark.sql(
        "select word, substring(text, start + 1, end - start) as cut "
        "from (select text, inline(entities(text)) from texts)"
    ).collect()
    assert len(found) > 3
    assert [row.cut for row in found] == [row.word for row in found]


def test_a_column_equals_the_same_column_of_score(texts: "DataFrame", entity_model: Path) -> None:
    config = lakescore.JobConfig.parse({"tasks": {"entities": {"model": str(entity_model)}}})
    scored = lakescore.score(texts, config).select("id", "entities").collect()
    entities = lakescore.entities(str(entity_model))
    assert texts.select("id", entities("text").alias("entities")).collect() == scored


def test_scores_is_all_that_score_adds_in_one_column(
    texts: "DataFrame", entity_model: Path, sentiment_model: Path
) -> None:
    models = {"entities": str(entity_model), "sentiment": str(sentiment_model)}
    config = lakescore.JobConfig.parse(
        {"tasks": {task: {"model": model} for task, model in models.items()}}
    )
    expected = lakescore.score(texts, config).drop("text").collect()
    scores = lakescore.scores(**models)
    found = texts.select("id", scores("text").alias("s")).select("id", "s.*")
    assert found.columns == ["id", "entities", "sentiment", "n_tokens", "error", "model"]
    assert found.collect() == expected
    only = lakescore.scores(sentiment=models["sentiment"])
    assert texts.select(only("text").alias("s")).select("s.*").columns == found.columns[2:]


def test_before_spark_4_1_they_are_pandas_udfs_of_the_same_results(
    spark: "SparkSession",
    entity_model: Path,
    sentiment_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [(1, "Maria 👍 lives in Lisbon"), (2, None), (3, "  "), (4, "so late!")]
    texts = spark.createDataFrame(rows, "id int, text string")

    def collected() -> list[Any]:
        entities = lakescore.entities(str(entity_model))("text")
        sentiment = lakescore.sentiment(str(sentiment_model))("text")
        scores = lakescore.scores(entities=str(entity_model), sentiment=str(sentiment_model))
        return texts.select(
            "id", entities.alias("e"), sentiment.alias("s"), scores("text").alias("all")
        ).collect()

    expected = collected()
    monkeypatch.delattr(functions, "arrow_udf", raising=False)
    found = collected()
    assert [row.e for row in found] == [row.e for row in expected]
    # A failed text's struct is one of nulls there.
    of_found, of_expected = (
        [row.s if row.s and row.s.label else None for row in rows] for rows in (found, expected)
    )
    assert of_found == of_expected
    assert [row["all"] for row in found] == [row["all"] for row in expected]


def test_a_wrong_setting_is_named(spark: "SparkSession") -> None:
    with pytest.raises(ConfigError, match=r"entities\(\): unknown key 'dtyp'; known: dtype, "):
        lakescore.entities("anything", dtyp="float32", spark=spark)
    with pytest.raises(ConfigError, match=r"entities\(\): 'aggregation' is 'last'"):
        lakescore.entities("anything", aggregation="last", spark=spark)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"scores\(\): names no task; give entities, sentiment"):
        lakescore.scores(spark=spark)


def test_a_model_for_another_task_is_refused(spark: "SparkSession", sentiment_model: Path) -> None:
    with pytest.raises(ModelError, match="entities"):
        lakescore.entities(str(sentiment_model), spark=spark)
