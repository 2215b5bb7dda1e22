# Databricks notebook source
# MAGIC %md
# MAGIC # Explore: what the models find in your texts
# MAGIC A sample of a table is scored, its entities are shown in the texts, and sentiment is
# MAGIC compared between groups. Attach a cluster with the lakescore wheel, and name your table and
# MAGIC models above.

# COMMAND ----------

dbutils.widgets.text("table", "main.lakescore_source.messages", "Table")
dbutils.widgets.text("key", "id", "Key column")
dbutils.widgets.text("text", "text", "Text column")
dbutils.widgets.text("group", "channel", "Column to compare by")
dbutils.widgets.text("rows", "300", "Rows of the sample")
dbutils.widgets.text("entities", "models:/main.lakescore.lakescore_entities@champion", "Entities")
dbutils.widgets.text(
    "sentiment", "models:/main.lakescore.lakescore_sentiment@champion", "Sentiment"
)
key, text, group = (dbutils.widgets.get(name) for name in ("key", "text", "group"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## A sample, scored once
# MAGIC It comes to the driver, so keep it small. The whole table is for the job.

# COMMAND ----------

import matplotlib.pyplot as plt
from pyspark.sql import functions as F

import lakescore
from lakescore.report import highlighted
from lakescore.tables import load, quoted

sample = (
    load(spark, dbutils.widgets.get("table"))
    .select(*(quoted(name) for name in (key, text, group)))
    .orderBy(F.rand(7))
    .limit(int(dbutils.widgets.get("rows")))
)
config = lakescore.JobConfig.parse(
    {
        "source": {"key": key, "text": text},
        "tasks": {task: {"model": dbutils.widgets.get(task)} for task in ("entities", "sentiment")},
    }
)
scored = lakescore.score(sample, config).toPandas()
failed = scored["error"].notna()
print(f"{len(scored):,} rows, {failed.sum():,} of them could not be scored")
good = scored[~failed]

# COMMAND ----------

# MAGIC %md
# MAGIC ## Entities, where they stand

# COMMAND ----------

with_names = good[good["entities"].map(len) > 0].head(15)
displayHTML(
    "".join(
        highlighted(
            row[text],
            [(each["start"], each["end"], each["entity_group"]) for each in row["entities"]],
        )
        for _, row in with_names.iterrows()
    )
)

# COMMAND ----------

# MAGIC %md
# MAGIC The names that come most often:

# COMMAND ----------

names = good[["entities"]].explode("entities").dropna()
names = names.assign(
    type=names["entities"].map(lambda each: each["entity_group"]),
    name=names["entities"].map(lambda each: each["word"]),
)
display(
    names.groupby(["type", "name"])
    .size()
    .rename("times")
    .reset_index()
    .sort_values("times", ascending=False)
    .head(20)
)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Sentiment by group

# COMMAND ----------

labels = good.assign(label=good["sentiment"].map(lambda each: each["label"]))
shares = labels.groupby(group)["label"].value_counts(normalize=True).unstack(fill_value=0)
axes = shares.plot.barh(stacked=True, figsize=(8, 0.6 * len(shares) + 1), colormap="RdYlGn")
axes.set_xlabel("share of texts")
axes.set_xlim(0, 1)
axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
axes.set_title(f"Sentiment by {group}, {len(labels):,} texts")
plt.show()

# COMMAND ----------

# MAGIC %md
# MAGIC ## In SQL
# MAGIC The same model as a function, for this session. `inline` makes a row of each entity.

# COMMAND ----------

spark.udf.register("entities", lakescore.entities(dbutils.widgets.get("entities"), spark=spark))
sample.limit(50).createOrReplaceTempView("sample")
display(
    spark.sql(
        f"SELECT {quoted(key)}, word, entity_group, round(score, 3) AS score "
        f"FROM (SELECT {quoted(key)}, inline(entities({quoted(text)})) FROM sample) LIMIT 20"
    )
)
