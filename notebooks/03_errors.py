# Databricks notebook source
# MAGIC %md
# MAGIC # Errors: which rows failed and why, and what the model misses
# MAGIC The first part looks at a scored table, the second compares a model with labelled sentences.

# COMMAND ----------

dbutils.widgets.text("target", "main.lakescore.messages_scored", "Scored table")
dbutils.widgets.text("key", "id", "Key column")
dbutils.widgets.text("labelled", "main.lakescore_source.labelled", "Labelled table")
dbutils.widgets.text("tokens", "tokens", "Its column of words")
dbutils.widgets.text("tags", "tags", "Its column of BIO tags")
dbutils.widgets.text("entities", "models:/main.lakescore.lakescore_entities@champion", "Entities")
key, tokens, tags = (dbutils.widgets.get(name) for name in ("key", "tokens", "tags"))

# COMMAND ----------

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.dates import DateFormatter, DayLocator
from pyspark.sql import functions as F

import lakescore
from lakescore.evaluation import score_entities
from lakescore.labelled import spans_of, word_offsets
from lakescore.report import highlighted
from lakescore.tables import load, quoted
from lakescore.text import REMEDIES

target = load(spark, dbutils.widgets.get("target"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## What failed, and what to do

# COMMAND ----------

codes = (
    target.groupBy(F.coalesce("error.code", F.lit("scored")).alias("code"))
    .agg(F.count(F.lit(1)).alias("rows"), F.min(quoted(key)).alias("one of them"))
    .toPandas()
)
codes["share"] = (codes["rows"] / codes["rows"].sum()).map("{:.2%}".format)
codes["what to do"] = codes["code"].map(REMEDIES).fillna("")
display(codes.sort_values("rows", ascending=False))

# COMMAND ----------

# MAGIC %md
# MAGIC By day of scoring: a step shows a change in the source, or in the model.

# COMMAND ----------

by_day = (
    target.where("error IS NOT NULL")
    .groupBy(F.to_date("scored_at").alias("day"), F.col("error.code").alias("code"))
    .count()
    .toPandas()
)
if len(by_day):
    counts = by_day.pivot(index="day", columns="code", values="count").fillna(0).sort_index()
    figure, axes = plt.subplots(figsize=(8, 3))
    below = 0
    for code in counts:
        axes.bar(counts.index, counts[code], bottom=below, label=code)
        below = below + counts[code]
    days = (counts.index[-1] - counts.index[0]).days
    axes.xaxis.set_major_locator(DayLocator(interval=1 + days // 6))
    axes.xaxis.set_major_formatter(DateFormatter("%Y-%m-%d"))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_ylabel("rows")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_title("Rows that failed, by day of scoring")
    plt.show()
else:
    print("no row failed")

# COMMAND ----------

# MAGIC %md
# MAGIC Some of each code, without their text; `detail` says what the code cannot:

# COMMAND ----------

display(
    target.where("error IS NOT NULL")
    .select(quoted(key), "error.code", "error.detail", "n_tokens", "scored_at")
    .orderBy("code", quoted(key))
    .limit(20)
)

# COMMAND ----------

# MAGIC %md
# MAGIC ## The model against labelled sentences
# MAGIC A span counts where its start, end and type are all right.

# COMMAND ----------

rows = load(spark, dbutils.widgets.get("labelled")).select(
    F.array_join(quoted(tokens), " ").alias("text"),
    F.col(quoted(tokens)).alias("tokens"),
    F.col(quoted(tags)).alias("tags"),
)
config = lakescore.JobConfig.parse(
    {"tasks": {"entities": {"model": dbutils.widgets.get("entities")}}}
)
scored = lakescore.score(rows, config).collect()
gold = [set(spans_of(row.tags, *word_offsets(row.tokens))) for row in scored]
found = [
    {(each["start"], each["end"], each["entity_group"]) for each in row.entities or ()}
    for row in scored
]
scores = score_entities(gold, found)
figures = [
    {"type": kind, "labelled": each.gold, "found": each.found, "precision": each.precision,
     "recall": each.recall, "F1": each.f1}
    for kind, each in [("all", scores.micro), *scores.per_type.items()]
]  # fmt: skip
display(pd.DataFrame(figures).round(3))

# COMMAND ----------

# MAGIC %md
# MAGIC Which types are missed, and what is found in their place:

# COMMAND ----------

MISSED = "nothing"


def said_of(span, spans):
    """The type that the model gave to what overlaps a labelled span most."""
    over = [(min(span[1], b) - max(span[0], a), kind) for a, b, kind in spans]
    return max([(size, kind) for size, kind in over if size > 0], default=(0, MISSED))[1]


pairs = pd.DataFrame(
    [
        (span[2], said_of(span, there))
        for right, there in zip(gold, found, strict=True)
        for span in right
    ],
    columns=["labelled", "found"],
)
display(pd.crosstab(pairs["labelled"], pairs["found"]).reset_index().rename_axis(columns=None))

# COMMAND ----------

# MAGIC %md
# MAGIC In the texts: first as labelled, then as the model has it. Only sentences where they differ.

# COMMAND ----------

differing = [
    (row.text, right, there)
    for row, right, there in zip(scored, gold, found, strict=True)
    if right != there
]
print(f"{len(differing):,} of {len(scored):,} sentences differ")
displayHTML(
    "<hr>".join(
        highlighted(text, right) + highlighted(text, there) for text, right, there in differing[:15]
    )
)
