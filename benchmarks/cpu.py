"""Rows per second on a CPU: a pipeline in a pandas UDF, as commonly written, against lakescore.

    make bench-cpu [ARGS="--rows 2000 --repeats 3"]

Entities on local[2], one thread a task. Every variant first scores a few rows that do not count,
which loads its model. The pipeline runs once at each batch size; then its best and all variants of
lakescore run in turn, `--repeats` times, and are compared by their medians. Texts are
cut to the model's limit beforehand, so that the pipeline's truncation changes nothing and both do
the same work. The packed forward pass is the bare model on ready tensors: the best that any code
around it could reach on these cores. For two tasks in one pass against one after the other, each
run writes its scores into a Delta table, as jobs do, and the ratio is the median of those of the
rounds.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus import ENTITIES, SENTIMENT, cut_to_tokens, load_texts, print_json, print_table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

BATCH_SIZES = (1, 8, 32)
DTYPES = ("float32", "bfloat16")
TASKS = {
    "entities": ["entities"],
    "sentiment": ["sentiment"],
    "both": ["entities", "sentiment"],
}
TASKS_AT_ONCE = 2
PARTITIONS = 2
MAX_TOKENS = 510


def main() -> None:
    """Measure, print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    corpus, texts = load_texts(arguments.rows)
    texts = cut_to_tokens(texts, ENTITIES, MAX_TOKENS)
    seconds, tokens = measure(texts, arguments.repeats)

    rows = len(texts)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    patterns = {size: rows / medians[f"pipeline, batch size {size}"] for size in BATCH_SIZES}
    ours = {dtype: rows / medians[f"lakescore {dtype}"] for dtype in DTYPES}
    share = {
        dtype: medians[f"packed forward {dtype}"] / medians[f"lakescore {dtype}"]
        for dtype in DTYPES
    }
    over_separate = {
        dtype: statistics.median(
            both / (entities + sentiment)
            for entities, sentiment, both in zip(
                *(seconds[f"{tasks} to Delta {dtype}"] for tasks in TASKS), strict=True
            )
        )
        for dtype in DTYPES
    }
    best = max(patterns.values())
    print_table(
        f"{rows:,} rows, {tokens:,} tokens of {corpus}, entities, local[{TASKS_AT_ONCE}]; "
        f"medians of {arguments.repeats}",
        ["", "seconds", "min", "max", "rows/s", "tokens/s", "x best pipeline", "of packed forward"],
        [
            [
                name,
                medians[name],
                min(times),
                max(times),
                rows / medians[name],
                tokens / medians[name],
                rows / medians[name] / best,
                medians[f"packed forward {'bfloat16' if 'bfloat16' in name else 'float32'}"]
                / medians[name],
            ]
            for name, times in seconds.items()
        ],
    )
    print_json(
        {
            "rows": rows,
            "tokens": tokens,
            "device_threads": TASKS_AT_ONCE,
            "databricks_pattern_rows_per_s": patterns,
            "lakescore_rows_per_s": ours,
            "speedup": {dtype: rate / best for dtype, rate in ours.items()},
            "share_of_packed_forward": share["float32"],
            "share_of_packed_forward_by_dtype": share,
            "two_tasks_one_pass_over_separate": over_separate["float32"],
            "two_tasks_one_pass_over_separate_by_dtype": over_separate,
        }
    )


def measure(texts: list[str], repeats: int) -> tuple[dict[str, list[float]], int]:
    """Return every variant's seconds, one value for each repeat, and the tokens in a run."""
    from lakescore.session import local_session

    batches = {dtype: PackedForward(texts, dtype) for dtype in DTYPES}
    with (
        tempfile.TemporaryDirectory() as folder,
        local_session(master=f"local[{TASKS_AT_ONCE}]") as spark,
    ):
        df = spark.createDataFrame(list(enumerate(texts)), "id long, text string")
        df = df.repartition(PARTITIONS).cache()
        df.count()
        few = df.limit(64).repartition(PARTITIONS).cache()
        runs: dict[str, Callable[[], float]] = {}

        def add(
            name: str,
            variant: Callable[["DataFrame"], "DataFrame"],
            delta: str | None = None,
        ) -> None:
            spark_run(variant(few), delta)()
            runs[name] = spark_run(variant(df), delta)

        for size in BATCH_SIZES:
            add(f"pipeline, batch size {size}", partial(pipeline_pattern, spark, size))
        seconds = {name: [run()] for name, run in runs.items()}
        best = min(runs, key=lambda name: seconds[name])
        runs = {best: runs[best]}
        for dtype in DTYPES:
            add(f"lakescore {dtype}", partial(scored, dtype, ["entities"]))
            for name, tasks in TASKS.items():
                variant = partial(scored, dtype, tasks)
                add(f"{name} to Delta {dtype}", variant, delta=f"{folder}/{name}-{dtype}")
        for dtype in DTYPES:
            runs[f"packed forward {dtype}"] = batches[dtype].run
            batches[dtype].run()
        for name in runs:
            seconds.setdefault(name, [])
        for _ in range(repeats):
            for name, run in runs.items():
                seconds[name].append(run())
    for forward in batches.values():
        forward.close()
    return seconds, batches["float32"].tokens


def spark_run(df: "DataFrame", delta: str | None = None) -> Callable[[], float]:
    """Return a function that computes all of `df` and returns the seconds.

    The rows go into a Delta table at the path `delta`, or nowhere.
    """

    def run() -> float:
        began = time.perf_counter()
        df.write.format("delta" if delta else "noop").mode("overwrite").save(delta)
        return time.perf_counter() - began

    return run


def scored(dtype: str, tasks: list[str], df: "DataFrame") -> "DataFrame":
    """Score `df` with lakescore."""
    import lakescore

    models = {"entities": ENTITIES, "sentiment": SENTIMENT}
    config = lakescore.JobConfig.parse(
        {
            "tasks": {task: {"model": models[task]} for task in tasks},
            "encoding": {"dtype": dtype},
        }
    )
    return lakescore.score(df, config)


def pipeline_pattern(spark: "SparkSession", batch_size: int, df: "DataFrame") -> "DataFrame":
    """Score `df` with a transformers pipeline that is broadcast to a pandas UDF."""
    import pandas as pd
    from pyspark.sql.functions import pandas_udf
    from transformers import pipeline

    broadcast = spark.sparkContext.broadcast(
        pipeline("token-classification", model=ENTITIES, aggregation_strategy="first", device="cpu")
    )

    @pandas_udf(
        "array<struct<word string, entity_group string, score float, start integer, end integer>>"
    )
    def entities(column: pd.Series) -> pd.Series:
        pipe = broadcast.value
        return pd.Series(pipe(column.to_list(), batch_size=batch_size))

    return df.select("id", "text", entities("text").alias("entities"))


class PackedForward:
    """The bare model on batches packed beforehand, in as many processes as Spark has tasks."""

    def __init__(self, texts: list[str], dtype: str) -> None:
        """Start the processes; each loads the model and lays out its share of the batches."""
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        self.tokens = 0
        for nth in range(TASKS_AT_ONCE):
            here, there = context.Pipe()
            process = context.Process(target=forward_worker, args=(there, texts, dtype, nth))
            process.start()
            self._pipes.append(here)
            self._processes.append(process)
        for pipe in self._pipes:
            self.tokens += pipe.recv()

    def run(self) -> float:
        """Run every batch once in all processes at once; return the seconds."""
        began = time.perf_counter()
        for pipe in self._pipes:
            pipe.send("run")
        for pipe in self._pipes:
            pipe.recv()
        return time.perf_counter() - began

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send("end")
            process.join()


def forward_worker(pipe: Any, texts: list[str], dtype: str, nth: int) -> None:
    """Answer "run" with a forward pass over every second batch of the sorted texts."""
    import torch

    from lakescore.encoder import Encoder, load_tokenizer

    folder = Path(ENTITIES)
    encoder = Encoder(folder, device="cpu", dtype=dtype, threads=1)  # type: ignore[arg-type]
    inputs = list(packed_inputs(load_tokenizer(folder), texts, encoder.token_budget))[
        nth::TASKS_AT_ONCE
    ]
    pipe.send(sum(tokens for _, tokens in inputs))
    while pipe.recv() == "run":
        with torch.inference_mode():
            for arguments, _ in inputs:
                encoder.model(**arguments)
        pipe.send("done")


def packed_inputs(tokenizer: Any, texts: list[str], budget: int) -> Iterator[tuple[Any, int]]:
    """Yield (the model's arguments, tokens of text) of batches over all texts, sorted by length."""
    import torch

    from lakescore.batching import pack
    from lakescore.text import windows
    from lakescore.tokens import collate

    tokens = tokenizer.tokenize(texts)
    every = windows(tokens.lengths, size=MAX_TOKENS, stride=0)
    lengths = every.lengths + tokenizer.special_count
    for chosen in pack(lengths, max_tokens=budget, max_rows=4096):
        batch = collate(tokenizer, tokens, every, chosen, width=int(lengths[chosen].max()))
        arguments = {"input_ids": torch.from_numpy(batch.input_ids)}
        if batch.attention_mask is not None:
            arguments["attention_mask"] = torch.from_numpy(batch.attention_mask).long()
        yield arguments, int(every.lengths[chosen].sum())


if __name__ == "__main__":
    main()
