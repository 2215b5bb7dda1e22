"""A declarative pipeline: a table of texts, scored, with a row for each entity and a daily mood.

    source -> cleaned_messages -> scored_messages -> message_entities
                                                  -> daily_sentiment

The pipeline's configuration says what it reads: `lakescore.source` (a table), `lakescore.key`,
`lakescore.text` and `lakescore.time` (columns of it), `lakescore.entities` and
`lakescore.sentiment` (models), and `lakescore.registry` where MLflow is to look for them.
conf/resources/pipeline.yml sets them on Databricks; `spark-pipelines run` takes them from its spec.

Each row of the source is scored once, as rows are added to it; one that cannot be scored has its
error, which the expectation counts.
"""

from collections.abc import Callable
from typing import Any

from pyspark import pipelines as dp
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import lakescore
from lakescore import tracking
from lakescore.tables import identifier, quoted

spark = SparkSession.active()


def setting(name: str) -> str:
    """Return a value of the pipeline's configuration."""
    value = spark.conf.get(f"lakescore.{name}", None)
    if not value:
        raise lakescore.ConfigError(f"the pipeline's configuration lacks lakescore.{name}")
    return value


def expect(name: str, condition: str) -> Callable[[Any], Any]:
    """Return Databricks' expectation of a table; open-source Spark has none."""
    return dp.expect(name, condition) if hasattr(dp, "expect") else lambda function: function


tracking.configure(None, None, registry_uri=spark.conf.get("lakescore.registry", None))
# Before a query function, in which nothing may be sent to Spark.
scores = lakescore.scores(entities=setting("entities"), sentiment=setting("sentiment"), spark=spark)
source, key, text, time = map(setting, ("source", "key", "text", "time"))


@dp.temporary_view(comment="Texts that have a key, without control characters")
def cleaned_messages() -> DataFrame:
    """Return the source's rows as id, said_at and text."""
    rows = spark.readStream.table(identifier(source))
    return rows.where(F.col(quoted(key)).isNotNull()).select(
        F.col(quoted(key)).alias("id"),
        F.col(quoted(time)).try_cast("timestamp").alias("said_at"),  # null of what is no time
        # One for one, so that offsets are the source's, too.
        F.regexp_replace(quoted(text), r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F]", " ").alias("text"),
    )


@dp.table(comment="Each text with its entities, its sentiment, or why it could not be scored")
@expect("is scored", "error IS NULL")
def scored_messages() -> DataFrame:
    """Return the texts with the columns that scoring adds."""
    rows = spark.readStream.table("cleaned_messages")
    scored = rows.select("id", "said_at", "text", scores("text").alias("scores"))
    return scored.select("id", "said_at", "text", "scores.*")


@dp.materialized_view(comment="A row for each entity; text[start:end] is the word")
def message_entities() -> DataFrame:
    """Return the entities of all texts."""
    found = spark.read.table("scored_messages").select("id", "said_at", F.explode("entities"))
    return found.select("id", "said_at", "col.*")


@dp.materialized_view(comment="How many texts of each label a day has, and how sure the model is")
def daily_sentiment() -> DataFrame:
    """Return counts and mean scores by day and label."""
    rows = spark.read.table("scored_messages").where("error IS NULL")
    by_day = rows.groupBy(F.to_date("said_at").alias("day"), F.col("sentiment.label"))
    return by_day.agg(
        F.count(F.lit(1)).alias("messages"), F.avg("sentiment.score").alias("mean_score")
    )
