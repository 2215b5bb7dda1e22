"""The scorer over tiny models: every row accounted for, whatever the text and the memory."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lakescore.encoder import Encoder, load_tokenizer
from lakescore.errors import ModelError
from lakescore.scorer import Limits, LoadedTask, Results, Scorer
from lakescore.tasks import Task
from lakescore.tasks.entities import Entities
from lakescore.tasks.sentiment import Sentiment
from lakescore.text import encode_texts
from tests.tiny_models import ENTITY_LABELS, SENTIMENT_LABELS, tiny_model

WINDOWED = Limits(max_length=None, stride=8, reject_long=False)
TEXTS = ["Maria Nowak flew to Lisbon.", "great 😀 fast", "Too late!", "Maria Nowak flew to Lisbon."]


def loaded(folder: Path, task: Task, **options: Any) -> LoadedTask:
    encoder = Encoder(folder, **({"device": "cpu", "dtype": "float32"} | options))
    return LoadedTask(task, encoder, load_tokenizer(folder))


def entity_task(folder: Path, **options: Any) -> LoadedTask:
    return loaded(folder, Entities(ENTITY_LABELS, aggregation="first"), **options)


def sentiment_task(folder: Path, **options: Any) -> LoadedTask:
    return loaded(folder, Sentiment(SENTIMENT_LABELS, problem_type=None), **options)


def score_one(scorer: Scorer, texts: list[Any]) -> Results:
    [results] = scorer.score([encode_texts(texts)])
    return results


def codes(results: Results) -> list[str | None]:
    return [error and error["code"] for error in results.error.to_pylist()]


def rounded(column: pa.Array) -> list[Any]:
    """Values without the last digits of scores, which depend on a batch's shape."""

    def simplify(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: simplify(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [simplify(inner) for inner in value]
        return round(value, 4) if isinstance(value, float) else value

    return [simplify(value) for value in column.to_pylist()]


@pytest.fixture(scope="module")
def both(entity_model: Path, sentiment_model: Path) -> Scorer:
    return Scorer([entity_task(entity_model), sentiment_task(sentiment_model)], WINDOWED)


def test_results_stand_in_the_rows_order_and_equal_texts_have_equal_results(both: Scorer) -> None:
    results = score_one(both, TEXTS)
    entities = results.columns["entities"].to_pylist()
    assert entities[0] == entities[3] != entities[1]
    assert codes(results) == [None] * 4
    alone = [rounded(score_one(both, [text]).columns["sentiment"])[0] for text in TEXTS]
    assert rounded(results.columns["sentiment"]) == alone


def test_columns_are_answered_one_by_one_in_order(both: Scorer) -> None:
    columns = [encode_texts(list(texts)) for texts in (TEXTS[:1], [], TEXTS[1:3], [None])]
    results = list(both.score(columns))
    assert [len(each.n_tokens) for each in results] == [1, 0, 2, 1]
    together = score_one(both, [*TEXTS[:3], None])
    for name in ("entities", "sentiment"):
        apart = [value for each in results for value in rounded(each.columns[name])]
        assert apart == rounded(together.columns[name])


def test_a_bad_row_has_its_reason_and_the_others_their_scores(both: Scorer) -> None:
    results = score_one(both, ["Maria", None, " ", b"\xff", "\u200b\x00", "Anna"])
    expected = [None, "null_text", "blank_text", "invalid_unicode", "blank_text", None]
    assert codes(results) == expected
    for column in results.columns.values():
        assert [value is None for value in column.to_pylist()] == [c is not None for c in expected]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(codec=None), max_size=300) | st.none(), max_size=8))
def test_any_text_is_scored_or_has_a_reason_and_spans_cut_words_out(
    both: Scorer, texts: list[str | None]
) -> None:
    results = score_one(both, list(texts))
    assert len(results.n_tokens) == len(texts)
    entities = results.columns["entities"].to_pylist()
    for text, code, found in zip(texts, codes(results), entities, strict=True):
        assert (code is None) == (found is not None)
        end = 0
        for each in found or []:
            assert text is not None
            assert text[each["start"] : each["end"]] == each["word"] == each["word"].strip() != ""
            assert each["start"] >= end
            end = each["end"]


def test_a_long_text_is_covered_by_windows(entity_model: Path) -> None:
    whole = score_one(Scorer([entity_task(entity_model)], WINDOWED), ["Maria Nowak " * 30])
    short = Limits(max_length=24, stride=8, reject_long=False)
    cut = score_one(Scorer([entity_task(entity_model)], short), ["Maria Nowak " * 30])
    assert cut.n_tokens.to_pylist() == whole.n_tokens.to_pylist()
    assert max(each["end"] for each in cut.columns["entities"].to_pylist()[0]) > 300


def test_a_long_text_is_rejected_where_the_job_says_so(both: Scorer) -> None:
    strict = Scorer(both.tasks, Limits(max_length=16, stride=0, reject_long=True))
    results = score_one(strict, ["Anna", "Maria Nowak " * 30])
    assert codes(results) == [None, "too_long"]
    detail = results.error.to_pylist()[1]["detail"]
    tokens = results.n_tokens.to_pylist()[1]
    assert detail == f"{tokens} tokens, the limit is 14; long_text: window"


def test_sentiment_of_a_long_text_is_the_mean_of_its_windows_by_tokens(
    sentiment_model: Path,
) -> None:
    task = sentiment_task(sentiment_model)
    text = " ".join(["great coffee", "late broken box", "thank you"] * 9)
    scorer = Scorer([task], Limits(max_length=18, stride=0, reject_long=False))
    [found] = score_one(scorer, [text]).columns["sentiment"].to_pylist()

    ids = task.tokenizer.backend.encode(text, add_special_tokens=False).ids
    pieces = [ids[nth : nth + 16] for nth in range(0, len(ids), 16)]
    if len(pieces[-1]) < 16:
        pieces[-1] = ids[-16:]
    total = np.zeros(2)
    for piece in pieces:
        with torch.inference_mode():
            wrapped = [*task.tokenizer.prefix, *piece, *task.tokenizer.suffix]
            logits = task.encoder.model(input_ids=torch.tensor([wrapped])).logits[0]
        total += logits.softmax(-1).numpy() * len(piece)
    mean = total / sum(map(len, pieces))
    assert found["label"] == SENTIMENT_LABELS[int(mean.argmax())]
    assert found["score"] == pytest.approx(mean.max(), abs=1e-5)


class PanicException(BaseException):
    """As Rust's panics reach Python: not an Exception."""


class Touchy:
    """Stands in for a tokenizer that fails on one word, as real ones have done on odd texts."""

    def __init__(self, backend: Any, error: type[BaseException]) -> None:
        self._backend, self._error = backend, error

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        if "touch" in text:
            raise self._error(f"no split for {text}")
        return self._backend.encode(text, add_special_tokens=add_special_tokens)

    def encode_batch(self, texts: list[str], *, add_special_tokens: bool) -> list[Any]:
        return [self.encode(text, add_special_tokens=add_special_tokens) for text in texts]


@pytest.mark.parametrize("error", [ValueError, PanicException])
def test_a_text_that_the_tokenizer_refuses_fails_alone(
    entity_model: Path, error: type[BaseException]
) -> None:
    task = entity_task(entity_model)
    expected = score_one(Scorer([task], WINDOWED), ["Anna", "Lisbon"])
    task.tokenizer.backend = Touchy(task.tokenizer.backend, error)
    found = score_one(Scorer([task], WINDOWED), ["Anna", "do not touch", "Lisbon"])
    assert found.error.to_pylist() == [
        None,
        {
            "code": "tokenizer_error",
            "detail": f"entities: the tokenizer raised {error.__name__}",
        },
        None,
    ]
    assert found.columns["entities"].take(pa.array([0, 2])) == expected.columns["entities"]


def test_stopping_the_process_is_no_row_error(entity_model: Path) -> None:
    task = entity_task(entity_model)
    task.tokenizer.backend = Touchy(task.tokenizer.backend, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        score_one(Scorer([task], WINDOWED), ["do not touch"])


class SmallMemory:
    """Stands in for a GPU whose memory runs out: torch's own error above so many tokens."""

    def __init__(self, encoder: Encoder, tokens: int) -> None:
        self.config = encoder.model.config
        self._model, self._tokens = encoder.model, tokens
        self.refused = 0

    def __call__(self, **inputs: torch.Tensor) -> Any:
        if inputs["input_ids"].numel() > self._tokens:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._model(**inputs)


def test_memory_running_out_halves_the_batches_and_changes_no_result(entity_model: Path) -> None:
    texts = [f"Maria Nowak {nth} flew to Lisbon" for nth in range(300)]  # several batches
    expected = score_one(Scorer([entity_task(entity_model)], WINDOWED), texts)
    task = entity_task(entity_model)
    memory = task.encoder.model = SmallMemory(task.encoder, 100)
    found = score_one(Scorer([task], WINDOWED), texts)
    assert rounded(found.columns["entities"]) == rounded(expected.columns["entities"])
    assert codes(found) == [None] * 300
    assert task.encoder.token_budget <= 200
    refused = memory.refused
    assert refused <= 8  # once for each halving, and not for each batch that was packed before
    score_one(Scorer([task], WINDOWED), texts)
    assert memory.refused == refused  # the smaller budget is kept


def test_a_window_that_fits_in_no_memory_fails_alone(entity_model: Path) -> None:
    task = entity_task(entity_model)
    task.encoder.model = SmallMemory(task.encoder, 40)
    results = score_one(Scorer([task], WINDOWED), ["Anna", "Maria Nowak " * 60, "Lisbon"])
    assert codes(results) == [None, "out_of_memory", None]
    assert results.error.to_pylist()[1]["detail"].startswith("entities: one window of ")


def test_an_error_that_is_not_about_memory_is_not_hidden(entity_model: Path) -> None:
    task = entity_task(entity_model)

    def broken(**inputs: torch.Tensor) -> Any:
        raise RuntimeError("index out of range")

    task.encoder.model = Wrapped(task.encoder.model.config, broken)
    with pytest.raises(RuntimeError, match="index out of range"):
        score_one(Scorer([task], WINDOWED), ["Anna"])


class Wrapped:
    """A model whose forward pass is any function."""

    def __init__(self, config: Any, forward: Callable[..., Any]) -> None:
        self.config, self._forward = config, forward

    def __call__(self, **inputs: torch.Tensor) -> Any:
        return self._forward(**inputs)


@pytest.fixture
def poisoned(tmp_path: Path) -> Iterator[Callable[[float], Path]]:
    """A model in which one word's vector is a number of one's choice."""

    def build(value: float) -> Path:
        folder = tiny_model(tmp_path / "poisoned")
        tokenizer = load_tokenizer(folder)
        [word] = tokenizer.backend.encode("late", add_special_tokens=False).ids[:1]
        weights = load_file(folder / "model.safetensors")
        weights["bert.embeddings.word_embeddings.weight"][word, ::2] = value
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    yield build


def test_a_text_whose_logits_are_not_finite_fails_alone(
    poisoned: Callable[[float], Path],
) -> None:
    task = entity_task(poisoned(float("nan")))
    results = score_one(Scorer([task], WINDOWED), ["Anna", "late Anna", "Lisbon"])
    assert codes(results) == [None, "non_finite", None]


def test_a_text_that_only_half_precision_cannot_hold_is_scored_in_float32(
    poisoned: Callable[[float], Path],
) -> None:
    folder = poisoned(1e5)  # float16 ends at 65,504
    texts = ["Anna", "late Anna", "Lisbon"]
    exact = score_one(Scorer([entity_task(folder)], WINDOWED), texts)
    half = score_one(Scorer([entity_task(folder, dtype="float16")], WINDOWED), texts)
    assert codes(half) == [None, None, None]
    assert rounded(half.columns["entities"])[1] == rounded(exact.columns["entities"])[1]


def test_a_model_without_its_head_is_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"its weights lack classifier\.bias \(2 in all\)"):
        entity_task(folder)


def test_a_model_on_a_cpu_sees_few_shapes_none_longer_than_its_limit(tmp_path: Path) -> None:
    task = entity_task(tiny_model(tmp_path / "short", max_position_embeddings=45), token_budget=256)
    shapes: set[tuple[int, int]] = set()
    task.encoder.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.add(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    scorer = Scorer([task], WINDOWED)
    for size in range(1, 40):
        texts = [" ".join(["Maria"] * words) for words in range(1, size + 1)]
        assert codes(score_one(scorer, texts)) == [None] * size
    widths = {width for _, width in shapes}
    assert max(widths) == 45
    assert widths <= {*range(2, 33, 2), 36, 40, 44, 45}
    assert all(rows == 256 // width or rows.bit_count() == 1 for rows, width in shapes)


def test_models_may_be_loaded_by_several_threads_at_once(entity_model: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        loads = [
            threads.submit(Encoder, entity_model, device="cpu", dtype="float32") for _ in range(24)
        ]
        encoders = [each.result() for each in loads]
    assert not any(each.is_meta for encoder in encoders for each in encoder.model.parameters())
    assert not torch.nn.Linear(2, 2).weight.is_meta  # as transformers has it for a while
