"""The same texts by transformers.pipeline and by lakescore: the same results.

Spans are compared without white space at their edges, and those of nothing but white space are
left out: that is lakescore's one difference, for tokenizers that count a space to the word after.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file
from transformers import pipeline

from lakescore.encoder import Encoder, load_tokenizer
from lakescore.scorer import Limits, LoadedTask, Scorer
from lakescore.tasks import Task
from lakescore.tasks.entities import Aggregation, Entities
from lakescore.tasks.sentiment import Sentiment
from lakescore.text import encode_texts
from tests.conftest import ROOT
from tests.tiny_models import CORPUS, ENTITY_LABELS, bpe_tokenizer, tiny_model

BENCH_TEXTS = ROOT.parent / "shared/data/bench_texts/all.parquet"
SHIPPED = ROOT / "models"
WINDOWED = Limits(max_length=None, stride=64, reject_long=False)

TRICKY = [
    *CORPUS,
    "U.S.A.'s O'Neill-Smith (b. 1970) paid $3,000.50 — twice!",
    "cafe\u0301 nai\u0308ve Zu\u0308rich",
    "two  spaces\tand a tab\n\nand lines",
    "zero\u200bwidth and\u00a0no-break",
    "שלום Anna مرحبا Bob",
    "👩‍👩‍👧 family 👍🏽👍🏽 in Berlin🇩🇪",
    "a",
    "ALLCAPS mixedCase snake_case e-mail@example.com https://example.com/a?b=c",
    "supercalifragilisticexpialidocious " * 3,
    "unknown ⚗ signs ☃ and 漢字 in between",
]


def score_all(folder: Path, task: Task, texts: list[str], limits: Limits = WINDOWED) -> list[Any]:
    encoder = Encoder(folder, device="cpu", dtype="float32")
    scorer = Scorer([LoadedTask(task, encoder, load_tokenizer(folder))], limits)
    [results] = scorer.score([encode_texts(list(texts))])
    assert results.error.null_count == len(texts)
    return list(results.columns[task.name].to_pylist())


def trimmed(text: str, entities: list[dict[str, Any]]) -> list[tuple[str, int, int, float]]:
    found = []
    for each in entities:
        cut = text[each["start"] : each["end"]]
        start = each["start"] + len(cut) - len(cut.lstrip())
        if cut.strip():
            end = start + len(cut.strip())
            found.append((each["entity_group"], start, end, float(each["score"])))
    return found


def assert_equal(texts: list[str], expected: list[Any], found: list[Any]) -> int:
    spans = 0
    for text, theirs, ours in zip(texts, expected, found, strict=True):
        left, right = trimmed(text, theirs), trimmed(text, ours)
        assert [each[:3] for each in right] == [each[:3] for each in left]
        assert [e[3] for e in right] == pytest.approx([e[3] for e in left], abs=1e-4)
        assert [each["word"] for each in ours] == [text[s:e] for _, s, e, _ in left]
        spans += len(left)
    return spans


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words:UserWarning")
@pytest.mark.parametrize("aggregation", ["simple", "first", "average", "max"])
@pytest.mark.parametrize("tokenizer", ["wordpiece", "bpe", "unigram"])
def test_entities_equal_the_pipelines(
    tmp_path: Path, tokenizer: Any, aggregation: Aggregation
) -> None:
    folder = tiny_model(tmp_path / "model", tokenizer=tokenizer)
    pipe = pipeline(
        "token-classification",
        model=str(folder),
        aggregation_strategy=aggregation,
        device="cpu",
    )
    found = score_all(folder, Entities(ENTITY_LABELS, aggregation=aggregation), TRICKY)
    assert assert_equal(TRICKY, pipe(TRICKY), found) > 100


def test_a_space_that_a_token_brings_is_no_part_of_a_span(tmp_path: Path) -> None:
    backend = bpe_tokenizer(trim_offsets=False)
    folder = tiny_model(tmp_path / "model", tokenizer="bpe", backend=backend)
    pipe = pipeline(
        "token-classification", model=str(folder), aggregation_strategy="simple", device="cpu"
    )
    expected = pipe(TRICKY)
    assert any(
        text[e["start"]] == " " for text, es in zip(TRICKY, expected, strict=True) for e in es
    )
    found = score_all(folder, Entities(ENTITY_LABELS, aggregation="simple"), TRICKY)
    assert_equal(TRICKY, expected, found)


@pytest.mark.parametrize("tokenizer", ["wordpiece", "bpe", "unigram"])
@pytest.mark.parametrize(
    ("labels", "problem_type"),
    [
        (("bad", "fair", "good"), None),
        (("bad", "fair", "good"), "single_label_classification"),
        (("rude", "late", "broken"), "multi_label_classification"),
        (("stars",), "regression"),
        (("spam",), None),
    ],
)
def test_sentiment_equals_the_pipelines(
    tmp_path: Path, tokenizer: Any, labels: tuple[str, ...], problem_type: str | None
) -> None:
    folder = tiny_model(
        tmp_path / "model",
        tokenizer=tokenizer,
        head="sequence-classification",
        labels=labels,
        problem_type=problem_type,
    )
    pipe = pipeline("text-classification", model=str(folder), device="cpu")
    found = score_all(folder, Sentiment(labels, problem_type=problem_type), TRICKY)
    if problem_type == "multi_label_classification":
        for theirs, ours in zip(pipe(TRICKY, top_k=None), found, strict=True):
            scores = {each["label"]: each["score"] for each in theirs}
            assert [each["label"] for each in ours] == list(labels)
            assert {e["label"]: e["score"] for e in ours} == pytest.approx(scores, abs=1e-4)
        return
    expected = pipe(TRICKY)
    assert [each["label"] for each in found] == [each["label"] for each in expected]
    scores = [each["score"] for each in expected]
    assert [each["score"] for each in found] == pytest.approx(scores, abs=1e-4)


def test_windows_equal_a_pipeline_that_reads_the_whole_text(tmp_path: Path) -> None:
    # A token's label hangs on the token alone, so that where a window cuts cannot change it:
    # what is compared is that every token is there once, with its own offsets.
    folder = tiny_model(tmp_path / "model", layers=0, max_position_embeddings=4096)
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.position_embeddings.weight"].zero_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    text = " ".join(TRICKY * 6)
    pipe = pipeline(
        "token-classification", model=str(folder), aggregation_strategy="first", device="cpu"
    )
    task = Entities(ENTITY_LABELS, aggregation="first")
    windows_of_64 = Limits(max_length=64, stride=16, reject_long=False)
    found = score_all(folder, task, [text], windows_of_64)
    assert assert_equal([text], [pipe(text)], found) > 100


@pytest.mark.skipif(not BENCH_TEXTS.exists(), reason="the texts in ../shared/data are not here")
@pytest.mark.parametrize("aggregation", ["simple", "first", "average", "max"])
def test_the_shipped_entity_model_equals_the_pipelines_on_real_text(
    aggregation: Aggregation,
) -> None:
    texts = pd.read_parquet(BENCH_TEXTS).text.iloc[5000:5020].str[:1000].tolist()
    folder = SHIPPED / "entities"
    labels = Encoder(folder, device="cpu", dtype="float32").model.config.id2label
    pipe = pipeline(
        "token-classification", model=str(folder), aggregation_strategy=aggregation, device="cpu"
    )
    task = Entities(tuple(labels[nth] for nth in range(len(labels))), aggregation=aggregation)
    assert_equal(texts, pipe(texts), score_all(folder, task, texts))
