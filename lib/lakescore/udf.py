"""UDFs for columns and SQL: `df.select(entities("models:/ner@champion")("text"))`."""

from collections.abc import Callable, Iterator
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
from lakescore.scorer import Results
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
    cannot be scored; `score` says why, in its column `error`. Before Spark 4.1 a string that is not
    UTF-8 is an error of Spark's own: cast such a column to binary.

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


def scores(
    *,
    entities: str | None = None,
    sentiment: str | None = None,
    aggregation: Aggregation = "first",
    spark: "SparkSession | None" = None,
    **encoding: Any,
) -> Any:
    """Return a UDF that does what `score` does, in one column: both tasks in one pass, and errors.

    Its result is a struct of the tasks' results, `n_tokens`, `error` (code, detail) and `model`,
    as the columns that `score` adds. Select `s.*` of it to have them as columns. It serves where a
    column is all that can be had, as in a declarative pipeline.

    Args:
        entities: the model of that task, or None.
        sentiment: the model of that task, or None; at least one of the two is needed.
        aggregation: how the tokens of a word agree; see `EntitiesConfig`.
        spark: the session; the active one if not given.
        encoding: any setting of `EncodingConfig`.

    Raises: as `entities` does.
    """
    tasks: dict[str, Any] = {}
    if entities is not None:
        tasks["entities"] = {"model": entities, "aggregation": aggregation}
    if sentiment is not None:
        tasks["sentiment"] = {"model": sentiment}
    wanted = TasksConfig.parse(tasks, origin="scores()")
    settings = EncodingConfig.parse(encoding, origin="scores()")
    plan = make_plan(_active(spark), wanted, settings)
    fields = [pa.field(name, kind) for name, kind in plan.result_columns]
    fields.append(pa.field("model", pa.map_(pa.string(), pa.string())))
    versions = list(plan.versions.items())

    def whole(results: Results) -> pa.Array:
        columns = [*results.columns.values(), results.n_tokens, results.error]
        columns.append(pa.array([versions] * len(results.error), fields[-1].type))
        return pa.StructArray.from_arrays(columns, fields=fields)

    return _udf(plan, "scores", pa.struct(fields), whole)


def _active(spark: "SparkSession | None") -> "SparkSession":
    from pyspark.sql import SparkSession

    found = spark or SparkSession.getActiveSession()
    if found is None:
        raise SetupError("no active Spark session in this thread; start one, or pass spark=")
    return found


def _column_udf(plan: Plan) -> Any:
    """Return a UDF of the results of a plan's only task."""
    task = plan.tasks[0].task
    return _udf(plan, task.name, task.arrow_type, lambda results: results.columns[task.name])


def _udf(plan: Plan, name: str, kind: pa.DataType, values: Callable[[Results], pa.Array]) -> Any:
    """Return a scalar UDF: an Arrow UDF where Spark has them (4.1), else a pandas UDF.

    Both are given Arrow batches; the Arrow one also survives strings that are not UTF-8, which
    Spark cannot turn into pandas.
    """
    import pyspark.sql.functions
    from pyspark.sql.pandas.types import from_arrow_type

    functions: Any = pyspark.sql.functions  # whose names and types differ between versions
    returned = from_arrow_type(kind)

    def score_arrays(columns: Iterator[pa.Array]) -> Iterator[pa.Array]:
        with without_words():
            for results in load(plan).score(columns):
                yield values(results)

    score_arrays.__name__ = name  # of which Spark makes the column's
    if hasattr(functions, "arrow_udf"):
        return functions.arrow_udf(score_arrays, returned)

    import pandas as pd

    def encode_series(column: pd.Series) -> pa.Array:
        return encode_texts(column.astype(object).where(column.notna(), None).tolist())

    def score_series(columns: Iterator[pd.Series]) -> Iterator[pd.Series]:
        for array in score_arrays(map(encode_series, columns)):
            yield array.to_pandas()

    def score_frames(columns: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        # Before 4.1 a struct comes as a frame, where a failed text is a row of nulls.
        for array in score_arrays(map(encode_series, columns)):
            parts = zip(array.type, array.flatten(), strict=True)
            yield pd.DataFrame(
                {field.name: part.to_pandas(maps_as_pydicts="strict") for field, part in parts}
            )

    function = score_frames if pa.types.is_struct(kind) else score_series
    function.__name__ = name
    return functions.pandas_udf(function, returned)
