"""The same rows by transformers.pipeline and by lakescore, on Spark, in float32: are they equal?

    make bench-parity [ARGS="--rows 2000"]

Entities by all four aggregation strategies, and sentiment; texts of at most 510 tokens, which the
pipeline does not cut.
"""

import argparse
from typing import Any

from corpus import ENTITIES, SENTIMENT, cut_to_tokens, load_texts, print_json, print_table

STRATEGIES = ("simple", "first", "average", "max")


def main() -> None:
    """Compare, print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000)
    rows = parser.parse_args().rows
    corpus, texts = load_texts(4 * rows)
    pairs = zip(texts, cut_to_tokens(texts, ENTITIES, 510), strict=True)
    kept = [text for text, cut in pairs if text == cut][:rows]

    expected = pipeline_entities(kept)
    found = lakescore_results(kept)
    figures = {name: compare(kept, expected[name], found[name]) for name in STRATEGIES}
    figures["sentiment"] = compare_labels(pipeline_sentiment(kept), found["sentiment"])
    print_table(
        f"{len(kept):,} rows of {corpus} of at most 510 tokens, float32",
        ["", "identical rows", "spans or labels", "max score diff"],
        [
            [name, each["rows_identical_fraction"], each["results"], each["max_score_diff"]]
            for name, each in figures.items()
        ],
    )
    print_json(
        {
            "rows": len(kept),
            "rows_identical_fraction": min(
                each["rows_identical_fraction"] for each in figures.values()
            ),
            "max_score_diff": max(each["max_score_diff"] for each in figures.values()),
            "strategies": {name: figures[name] for name in STRATEGIES},
            "sentiment": figures["sentiment"],
        }
    )


def pipeline_entities(texts: list[str]) -> dict[str, list[list[dict[str, Any]]]]:
    """Run the pipeline's own three steps: its model once, its last step for each strategy."""
    from transformers import pipeline
    from transformers.pipelines.token_classification import AggregationStrategy

    pipe = pipeline("token-classification", model=ENTITIES, device="cpu")
    found: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in STRATEGIES}
    for text in texts:
        steps = pipe.preprocess(text, is_split_into_words=False, delimiter=None)
        outputs = [pipe.forward(step) for step in steps]
        for name in STRATEGIES:
            found[name].append(pipe.postprocess(outputs, AggregationStrategy(name)))
    return found


def pipeline_sentiment(texts: list[str]) -> list[dict[str, Any]]:
    """Run the sentiment pipeline as it comes."""
    from transformers import pipeline

    results = pipeline("text-classification", model=SENTIMENT, device="cpu")(texts)
    return list(results)


def lakescore_results(texts: list[str]) -> dict[str, list[Any]]:
    """Score the texts with Spark, once for each strategy."""
    import lakescore
    from lakescore.session import local_session

    found: dict[str, list[Any]] = {}
    with local_session(master="local[2]") as spark:
        df = spark.createDataFrame(list(enumerate(texts)), "id long, text string").repartition(4)
        for name in STRATEGIES:
            tasks = {"entities": {"model": ENTITIES, "aggregation": name}}
            if name == "first":
                tasks["sentiment"] = {"model": SENTIMENT}
            config = lakescore.JobConfig.parse({"tasks": tasks})
            rows = lakescore.score(df, config).orderBy("id").collect()
            found[name] = [row["entities"] for row in rows]
            if name == "first":
                found["sentiment"] = [row["sentiment"] for row in rows]
    return found


def compare(
    texts: list[str], expected: list[list[dict[str, Any]]], found: list[Any]
) -> dict[str, float]:
    """Compare spans and groups exactly; scores by their largest difference."""
    identical, spans, difference = 0, 0, 0.0
    for text, theirs, ours in zip(texts, expected, found, strict=True):
        left = [
            (each["entity_group"], text[each["start"] : each["end"]], each["start"], each["end"])
            for each in theirs
        ]
        right = [
            tuple(each[key] for key in ("entity_group", "word", "start", "end"))
            for each in ours or []
        ]
        spans += len(left)
        if ours is not None and left == right:
            identical += 1
            pairs = zip(theirs, ours, strict=True)
            difference = max([difference, *(abs(float(a["score"]) - b["score"]) for a, b in pairs)])
    return {
        "rows_identical_fraction": identical / len(texts),
        "results": spans,
        "max_score_diff": difference,
    }


def compare_labels(expected: list[dict[str, Any]], found: list[Any]) -> dict[str, float]:
    """Compare labels exactly; scores by their largest difference."""
    pairs = list(zip(expected, found, strict=True))
    same = [b is not None and a["label"] == b["label"] for a, b in pairs]
    return {
        "rows_identical_fraction": sum(same) / len(pairs),
        "results": len(pairs),
        "max_score_diff": max(abs(a["score"] - b["score"]) for a, b in pairs if b is not None),
    }


if __name__ == "__main__":
    main()
