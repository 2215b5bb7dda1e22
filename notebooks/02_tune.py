# Databricks notebook source
# MAGIC %md
# MAGIC # Tune: the settings that are fastest on this cluster
# MAGIC Rows per second of your models on your texts, for each dtype, token budget and number of
# MAGIC partitions, and whether a faster dtype still gives the same results. At the end stand the
# MAGIC settings to put into your configuration.
# MAGIC
# MAGIC Tasks per GPU are the cluster's (`spark.task.resource.gpu.amount`: 1 is one task, 0.5 two):
# MAGIC to compare them, run this notebook on a cluster of each.

# COMMAND ----------

dbutils.widgets.text("table", "main.lakescore_source.messages", "Table")
dbutils.widgets.text("text", "text", "Text column")
dbutils.widgets.text("rows", "20000", "Rows to measure with")
dbutils.widgets.text("repeats", "3", "Times each setting is measured")
dbutils.widgets.text("dtypes", "float32, auto", "Dtypes")
dbutils.widgets.text("budgets", "default, half, double", "Token budgets")
dbutils.widgets.text("partitions", "1, 2, 4", "Partitions for each task that can run at once")
dbutils.widgets.text("entities", "models:/main.lakescore.lakescore_entities@champion", "Entities")
dbutils.widgets.text(
    "sentiment", "models:/main.lakescore.lakescore_sentiment@champion", "Sentiment"
)


def listed(name):
    return [each.strip() for each in dbutils.widgets.get(name).split(",") if each.strip()]


rows, repeats = int(dbutils.widgets.get("rows")), int(dbutils.widgets.get("repeats"))

# COMMAND ----------

import time
from statistics import median

import matplotlib.pyplot as plt
import pandas as pd
from pyspark.sql import functions as F

import lakescore
from lakescore.distribute import slots_of
from lakescore.encoder import TOKEN_BUDGET
from lakescore.tables import load, quoted

slots = slots_of(spark)
per_gpu = spark.conf.get("spark.task.resource.gpu.amount", None)


@F.udf("string")
def device_of(_):
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


device = spark.range(1).select(device_of("id")).first()[0]
print(f"{slots} tasks at once, on {device}; spark.task.resource.gpu.amount is {per_gpu}")

texts = (
    load(spark, dbutils.widgets.get("table"))
    .select(F.col(quoted(dbutils.widgets.get("text"))).alias("text"))
    .where("trim(text) <> ''")
    .limit(rows)
    .toPandas()
)
# Of a table with fewer rows they are taken again, each marked so that none is scored for another.
times = -(-rows // max(len(texts), 1))
texts = pd.concat([texts["text"] + f" ({nth})" for nth in range(times)])[:rows].to_frame()

# COMMAND ----------

# MAGIC %md
# MAGIC ## Measuring
# MAGIC Each setting is scored once to load the models, then as often as said; the median counts.
# MAGIC Nothing is written.

# COMMAND ----------


def scored(partitions, **encoding):
    tasks = {task: {"model": dbutils.widgets.get(task)} for task in ("entities", "sentiment")}
    config = lakescore.JobConfig.parse({"tasks": tasks, "encoding": encoding})
    frame = spark.createDataFrame(texts).repartition(partitions * slots)
    return lakescore.score(frame, config)


def measured(partitions, **encoding):
    frame, seconds = scored(partitions, **encoding), []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        frame.write.format("noop").mode("overwrite").save()
        seconds.append(time.perf_counter() - began)
    return len(texts) / median(seconds[1:])


USUAL = TOKEN_BUDGET[device]  # where nothing is said
BUDGETS = {"default": None, "half": USUAL // 2, "double": USUAL * 2}
found = []
for dtype in listed("dtypes"):
    for budget in listed("budgets"):
        given = BUDGETS[budget] if budget in BUDGETS else int(budget)
        encoding = {"dtype": dtype} | ({} if given is None else {"token_budget": given})
        rate = measured(1, **encoding)
        found.append(
            {"dtype": dtype, "token_budget": given or USUAL, "partitions": 1, "rows/s": rate}
        )
best = max(found, key=lambda each: each["rows/s"])
for partitions in map(int, listed("partitions")):
    if partitions > 1:
        encoding = {"dtype": best["dtype"], "token_budget": best["token_budget"]}
        rate = measured(partitions, **encoding)
        found.append({**encoding, "partitions": partitions, "rows/s": rate})
table = pd.DataFrame(found)
display(table.round(1).sort_values("rows/s", ascending=False))

# COMMAND ----------

names = table.apply(
    lambda row: f"{row['dtype']}, {row['token_budget']:,} tokens, x{row['partitions']}", axis=1
)
figure, axes = plt.subplots(figsize=(8, 0.45 * len(table) + 1))
bars = axes.barh(names, table["rows/s"], color="#5b7aa6")
axes.bar_label(bars, fmt="{:,.3g}", padding=3)
axes.invert_yaxis()
axes.set_xlabel("rows/s")
axes.set_title("Rows per second by setting")
for side in ("top", "right"):
    axes.spines[side].set_visible(False)
plt.show()

# COMMAND ----------

# MAGIC %md
# MAGIC ## Do the results stay the same?
# MAGIC Half precision rounds scores; a label or a span changes only where the model was in doubt.

# COMMAND ----------


def results(dtype):
    frame = scored(1, dtype=dtype).toPandas().sort_values("text")
    labels = frame["sentiment"].map(lambda each: each and each["label"])
    spans = frame["entities"].map(
        lambda found: (
            found is not None
            and tuple((each["start"], each["end"], each["entity_group"]) for each in found)
        )
    )
    return labels.tolist(), spans.tolist()


same = {}
if "float32" in listed("dtypes"):
    expected = results("float32")
    for dtype in listed("dtypes"):
        if dtype != "float32":
            pairs = zip(expected, results(dtype), strict=True)
            same[dtype] = [
                sum(a == b for a, b in zip(one, other, strict=True)) / len(texts)
                for one, other in pairs
            ]
display(pd.DataFrame(same, index=["same label", "same entities"]).T.reset_index(names="dtype"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Recommended

# COMMAND ----------

# Of settings that are as fast as the fastest within the noise, the first is the plainest.
fast = [each for each in found if each["rows/s"] > 0.97 * max(one["rows/s"] for one in found)]
chosen = fast[0]
print("encoding:")
print(f"  dtype: {chosen['dtype']}")
if chosen["token_budget"] != USUAL:
    print(f"  token_budget: {chosen['token_budget']}")
print("source:")
print(
    f"  partitions: {chosen['partitions'] * slots}   # {chosen['partitions']} for each task at once"
)
print(f"# {chosen['rows/s']:,.0f} rows/s here, at {slots} tasks")
