"""Tokens per second of the encoder alone, without Spark, against transformers.pipeline.

    make bench-encoder [DEVICE=cuda] [ARGS="--dtype float16 --rows 20000"]

A BERT-base of random weights (from its config), texts of mixed lengths, entities. Both sides do
all the work: texts in, entities out. The pipeline is taken at its best batch size, in the same
dtype. The floating-point operations of one token are 24 h^2 + 4 s h a layer (h the width, s the
length of its text): those of the matrix products of a forward pass, without padding.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpus import ENTITIES, cut_to_tokens, load_texts, print_json, print_table

WIDTH, LAYERS, HEADS = 768, 12, 12
MAX_TOKENS = 510
H200_TFLOPS = 790.0  # bfloat16 matrix products, as measured on one
LABELS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")


def main() -> None:
    """Measure, print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default=None, help="float32, bfloat16 or float16")
    parser.add_argument("--rows", type=int, default=None, help="20,000 on a GPU, 200 on a CPU")
    parser.add_argument("--token-budget", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    on_gpu = arguments.device.startswith("cuda")
    dtype = arguments.dtype or ("bfloat16" if on_gpu else "float32")
    corpus, texts = load_texts(arguments.rows or (20_000 if on_gpu else 200))
    texts = cut_to_tokens(texts, ENTITIES, MAX_TOKENS)

    with tempfile.TemporaryDirectory() as folder:
        build_model(Path(folder))
        score, lengths = lakescore_run(
            Path(folder), texts, arguments.device, dtype, arguments.token_budget
        )
        tokens = int(lengths.sum())
        seconds = {"lakescore": timed(score, arguments.repeats)}
        # The pipeline is slow and its rate even: a part of the texts tells it.
        part = texts[:: max(len(texts) // 2000, 1)]
        part_tokens = int(lengths[:: max(len(texts) // 2000, 1)].sum())
        for size in (1, 8, 32, 128) if on_gpu else (1, 8, 32):
            run = pipeline_run(folder, part, arguments.device, dtype, size)
            took = timed(run, arguments.repeats)
            seconds[f"pipeline, batch size {size}"] = took * tokens / part_tokens

    operations = float((LAYERS * (24 * WIDTH**2 + 4 * lengths * WIDTH) * lengths).sum())
    tflops = operations / seconds["lakescore"] / 1e12
    best = min(value for name, value in seconds.items() if name != "lakescore")
    print_table(
        f"{len(texts):,} rows, {tokens:,} tokens of {corpus}, BERT-base, {dtype}, "
        f"{device_name(arguments.device)}",
        ["", "seconds", "tokens/s", "TFLOP/s", "x best pipeline"],
        [
            [name, took, tokens / took, operations / took / 1e12, best / took]
            for name, took in seconds.items()
        ],
    )
    print_json(
        {
            "device": device_name(arguments.device),
            "dtype": dtype,
            "rows": len(texts),
            "tokens_per_s": tokens / seconds["lakescore"],
            "pipeline_tokens_per_s": tokens / best,
            "speedup": best / seconds["lakescore"],
            "model_tflops": tflops,
            "share_of_h200": tflops / H200_TFLOPS,
        }
    )


def build_model(folder: Path) -> None:
    """Write a BERT-base of random weights, with the tokenizer of the demo's model."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForTokenClassification

    tokenizer = AutoTokenizer.from_pretrained(ENTITIES)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
    )
    BertForTokenClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def lakescore_run(
    folder: Path, texts: list[str], device: str, dtype: Any, token_budget: int | None
) -> tuple[Callable[[], None], Any]:
    """Return a function that scores the texts, and the tokens in each."""
    import pyarrow as pa

    from lakescore.encoder import Encoder, load_tokenizer
    from lakescore.scorer import Limits, LoadedTask, Scorer
    from lakescore.tasks.entities import Entities

    encoder = Encoder(folder, device=device, dtype=dtype, token_budget=token_budget)
    tokenizer = load_tokenizer(folder)
    loaded = LoadedTask(Entities(LABELS, aggregation="first"), encoder, tokenizer)
    scorer = Scorer([loaded], Limits(max_length=None, stride=64, reject_long=False))
    columns = [pa.array(texts[begin : begin + 10_000]) for begin in range(0, len(texts), 10_000)]

    def run() -> None:
        for results in scorer.score(columns):
            if results.error.null_count != len(results.error):
                raise SystemExit("a row failed; the figures would mean nothing")

    return run, tokenizer.tokenize(texts).lengths


def pipeline_run(
    folder: str, texts: list[str], device: str, dtype: str, size: int
) -> Callable[[], None]:
    """Return a function that runs the pipeline over the texts."""
    import torch
    from transformers import pipeline

    pipe = pipeline(
        "token-classification", model=folder, aggregation_strategy="first", device=device
    )
    pipe.model.to(getattr(torch, dtype))

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its advice to use a dataset
            pipe(texts, batch_size=size)

    return run


def timed(run: Callable[[], None], repeats: int) -> float:
    """Return the median seconds of `repeats` runs, after one that does not count."""
    run()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def device_name(device: str) -> str:
    """Return the device as the hardware calls itself."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
