import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lakescore import errors
from lakescore.config import EncodingConfig
from lakescore.errors import LakescoreError, ModelError, SetupError
from lakescore.isolation import IsolatedScorer
from lakescore.plan import LocalPlan
from lakescore.scorer import ERROR_TYPE, Results, Scorer
from lakescore.snapshot import resolve
from lakescore.tasks.entities import Entities

KINDS = {"length": pa.int64()}
LOST = {"code": "worker_lost", "detail": "the process that scored this text died of it"}


class Lengths:
    """A scorer whose process dies of some texts, and of the rest says how long they are."""

    def __init__(self, poison: Sequence[str], log: Path) -> None:
        self.poison = poison
        self.log = log

    def score(self, columns: Sequence[pa.Array]) -> list[Results]:
        [column] = columns
        texts = column.to_pylist()
        with self.log.open("a") as log:
            log.write(f"{len(texts)}\n")
        if any(text in self.poison for text in texts):
            os.kill(os.getpid(), signal.SIGKILL)
        lengths = pa.array([None if text is None else len(text) for text in texts], pa.int64())
        tokens = pa.array([0] * len(texts), pa.int32())
        return [Results({"length": lengths}, tokens, pa.nulls(len(texts), ERROR_TYPE))]


class Mortal:
    """A real scorer, whose process dies of one text."""

    def __init__(self, make: Callable[[], Scorer], poison: bytes) -> None:
        self.scorer = make()
        self.poison = poison

    def score(self, columns: Sequence[pa.Array]) -> Iterator[Results]:
        if any(self.poison in column.to_pylist() for column in columns):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.scorer.score(columns)


def dead(log: Path) -> Lengths:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def test_each_text_that_kills_its_process_is_lost_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    scorer = IsolatedScorer(partial(Lengths, ["bad"], log), KINDS)  # type: ignore[arg-type]
    texts = ["a" * (nth % 5 + 1) for nth in range(40)]
    texts[17] = "bad"
    first, empty, last = scorer.score(map(pa.array, (texts, pa.array([], pa.string()), ["ab"])))
    expected = [None if text == "bad" else len(text) for text in texts]
    assert first.columns["length"].to_pylist() == expected
    codes = [None if each is None else each["code"] for each in first.error.to_pylist()]
    assert codes == ["worker_lost" if text == "bad" else None for text in texts]
    assert (len(empty.n_tokens), empty.columns["length"].type) == (0, pa.int64())
    assert last.columns["length"].to_pylist() == [2]
    # 40 rows, then pieces of 3, then of 1 until the row has killed two: four deaths in all.
    sizes = [int(line) for line in log.read_text().split()]
    assert sum(size > 3 for size in sizes) == 1
    assert scorer._pool is None


def as_rows(results: Results) -> list[tuple[Any, ...]]:
    """Each row's results, token count and error."""
    arrays = (*results.columns.values(), results.n_tokens, results.error)
    return list(zip(*(array.to_pylist() for array in arrays), strict=True))


def types(results: Results) -> tuple[Any, ...]:
    columns = {name: array.type for name, array in results.columns.items()}
    return columns, results.n_tokens.type, results.error.type


def test_what_a_child_scores_is_what_a_scorer_gives_for_the_same_piece(entity_model: Path) -> None:
    snapshot = resolve(str(entity_model), task="entities")
    task = Entities(snapshot.labels, aggregation="first")
    planned = (task, snapshot.tokenizer_fingerprint, snapshot.folder)
    plan = LocalPlan((planned,), EncodingConfig(), "cpu", 1)
    kinds = {task.name: task.arrow_type}
    scorer = IsolatedScorer(partial(Mortal, plan.scorer, b"bad"), kinds)  # type: ignore[arg-type]
    texts = [b"Maria in Lisbon", None, b" ", b"\xff", b"bad", b"Anna and Contoso " * 300]
    column = pa.array(texts, pa.binary())
    [found] = scorer.score([column])
    # So few rows are divided into single ones.
    alone = list(plan.scorer().score(column[nth : nth + 1] for nth in range(len(texts))))
    expected = [row for each in alone for row in as_rows(each)]
    expected[texts.index(b"bad")] = (None, 0, LOST)
    assert as_rows(found) == expected
    assert types(found) == types(alone[0])


def test_a_process_that_dies_while_it_loads_blames_no_row(tmp_path: Path) -> None:
    scorer = IsolatedScorer(partial(dead, tmp_path), KINDS)  # type: ignore[arg-type]
    with pytest.raises(SetupError, match="before it has any; see that a second copy of the models"):
        next(scorer.score([pa.array(["a"])]))


def refused() -> Lengths:
    raise ModelError("no memory left for the model")


def test_an_error_while_models_load_is_raised_as_it_is() -> None:
    scorer = IsolatedScorer(refused, KINDS)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"^no memory left for the model$"):
        next(scorer.score([pa.array(["a"])]))


def test_models_that_die_of_any_text_blame_no_row(tmp_path: Path) -> None:
    poison = ["a", "b"]
    scorer = IsolatedScorer(partial(Lengths, poison, tmp_path / "log"), KINDS)  # type: ignore[arg-type]
    with pytest.raises(SetupError, match="before it has any"):
        next(scorer.score([pa.array(["b", "b"])]))
    assert scorer._pool is None


def test_every_error_of_the_library_comes_out_of_another_process_as_it_is() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type)]
    for kind in kinds:
        if issubclass(kind, LakescoreError):
            copy = pickle.loads(pickle.dumps(kind("a message")))
            assert (type(copy), str(copy)) == (kind, "a message")
