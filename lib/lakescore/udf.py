"""UDFs for columns and SQL: `df.select(entities("models:/ner@champion")("text"))`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lakescore.config import (
    Aggregation,
    EncodingConfig,
    EntitiesConfig,
    SentimentConfig,
    TasksConfig,
)
from lakescore.errors import SetupError, without_words
from lakescore.plan import Plan, load, make_plan
from lakescore.text import encode_texts

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def entities(
    model: str,
    *,
    aggregation: Aggregation = "first",
    spark: "SparkSession | None" = None,
    **encoding: Any,
) -> Any:
    """Return a UDF that finds the entities in a column of text.

    It is called on a column in `df.select`, and in SQL after `spark.udf.register(name, udf)`.
    Its result is `array<struct<entity_group, word, score, start, end>>`, null for a text that
    cannot be scored; `score` says why, in its column `error`.

    Args:
        model: a folder, `org/name@revision`, `models:/name@alias` or `runs:/id/path`.
        aggregation: how the tokens of a word agree; see `EntitiesConfig`.
        spark: the session; the active one if not given.
        encoding: any setting of `EncodingConfig`, as in `dtype="bfloat16"`.

    Raises:
        ConfigError: a setting is unknown or does not fit.
        ModelError: the model cannot be resolved, is unsafe, or is not for this task.
        SetupError: there is no active session.
    """
    values = {"model": model, "aggregation": aggregation}
    task = EntitiesConfig.parse(values, origin="entities()")
    settings = EncodingConfig.parse(encoding, origin="entities()")
    return _column_udf(make_plan(_active(spark), TasksConfig(entities=task), settings))


def sentiment(model: str, *, spark: "SparkSession | None" = None, **encoding: Any) -> Any:
    """Return a UDF that gives the sentiment of a column of text.

    Its result is `struct<label, score>`; for a multi-label model an array of them. All else is
    as with `entities`.
    """
    task = SentimentConfig.parse({"model": model}, origin="sentiment()")
    settings = EncodingConfig.parse(encoding, origin="sentiment()")
    return _column_udf(make_plan(_active(spark), TasksConfig(sentiment=task), settings))


def _active(spark: "SparkSession | None") -> "SparkSession":
    from pyspark.sql import SparkSession

    found = spark or SparkSession.getActiveSession()
    if found is None:
        raise SetupError("no active Spark session in this thread; start one, or pass spark=")
    return found


def _column_udf(plan: Plan) -> Any:
    """A scalar UDF of one task: an Arrow UDF where Spark has them (4.1), else a pandas UDF.

    Both are given Arrow batches; the Arrow one also survives strings that are not UTF-8, which
    Spark cannot turn into pandas.
    """
    from pyspark.sql import functions
    from pyspark.sql.pandas.types import from_arrow_type

    task = plan.tasks[0].task
    returned = from_arrow_type(task.arrow_type)

    def score_arrays(columns: Iterator[pa.Array]) -> Iterator[pa.Array]:
        with without_words():
            for results in load(plan).score(columns):
                yield results.columns[task.name]

    score_arrays.__name__ = task.name  # of which Spark makes the column's
    if hasattr(functions, "arrow_udf"):
        return functions.arrow_udf(score_arrays, returned)

    import pandas as pd

    def encode_series(column: pd.Series) -> pa.Array:
        return encode_texts(column.astype(object).where(column.notna(), None).tolist())

    def score_series(columns: Iterator[pd.Series]) -> Iterator[pd.Series]:
        for values in score_arrays(map(encode_series, columns)):
            yield values.to_pandas()

    def score_frames(columns: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        # Before 4.1 a struct comes as a frame, where a failed text is a row of nulls.
        for values in score_arrays(map(encode_series, columns)):
            yield pd.DataFrame(dict(zip(("label", "score"), values.flatten(), strict=True)))

    is_struct = pa.types.is_struct(task.arrow_type)
    function = score_frames if is_struct else score_series
    function.__name__ = task.name
    return functions.pandas_udf(function, returned)  # type: ignore[attr-defined]  # it is there
