"""A model that costs nothing, for drivers and workers with this folder on their PYTHONPATH.

It stands in for `lakescore.plan.load`, so that hundreds of runs take minutes and what Delta and
Spark do can be timed. Its results follow from the text alone: one entity, the first letter, and a
sentiment by the length. A text with XRAISEDX is an error that quotes it, as those of other
libraries may be. LAKESCORE_STUB_MS are milliseconds that each row takes.

LAKESCORE_STUB_RECORD names a folder where each worker writes down what it scores, in a file that
is named by its process: for each Arrow batch a line of how many rows, ended once they are scored.
"""

import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lakescore import plan
from lakescore.scorer import ERROR_TYPE, Results
from lakescore.tasks.sentiment import LABEL_TYPE

_SECONDS = float(os.environ.get("LAKESCORE_STUB_MS", "0")) / 1000
_RECORD = os.environ.get("LAKESCORE_STUB_RECORD", "")


class StubScorer:
    """Scores as `lakescore.scorer.Scorer` does, without a model."""

    def __init__(self, kinds: dict[str, pa.DataType]) -> None:
        self.kinds = kinds

    def score(self, columns: Iterable[pa.Array]) -> Iterator[Results]:
        for column in columns:
            _record(str(len(column)))
            if _SECONDS:
                time.sleep(_SECONDS * len(column))
            results = self._results(column.cast(pa.string()))
            _record("\n")
            yield results

    def _results(self, texts: pa.Array) -> Results:
        refused = texts.filter(pc.match_substring(texts, "XRAISEDX"))
        if len(refused):
            raise ValueError(f"cannot read {refused.to_pylist()}")
        is_null, is_blank = pc.is_null(texts), pc.equal(pc.utf8_trim_whitespace(texts), "")
        failed = pc.or_(is_null, pc.fill_null(is_blank, False))
        lengths = pc.fill_null(pc.utf8_length(texts), 0).cast(pa.int32())
        code = pc.if_else(is_null, "null_text", pc.if_else(failed, "blank_text", None))
        error = pa.StructArray.from_arrays(
            [code, code], fields=list(ERROR_TYPE), mask=pc.invert(failed)
        )
        columns = {}
        for name, kind in self.kinds.items():
            make = _sentiment if name == "sentiment" else _entities
            columns[name] = pc.if_else(
                failed, pa.nulls(len(texts), kind), make(texts, lengths, kind)
            )
        return Results(columns, pc.if_else(failed, 0, lengths).cast(pa.int32()), error)


def _record(said: str) -> None:
    if _RECORD:
        with open(os.path.join(_RECORD, str(os.getpid())), "a") as file:
            file.write(said)


def _sentiment(texts: pa.Array, lengths: pa.Array, kind: pa.DataType) -> pa.Array:
    is_even = pc.equal(pc.bit_wise_and(lengths, 1), 0)
    score = pa.array([0.75] * len(texts), pa.float32())
    return pa.StructArray.from_arrays(
        [pc.if_else(is_even, "positive", "negative"), score], fields=list(LABEL_TYPE)
    ).cast(kind)


def _entities(texts: pa.Array, lengths: pa.Array, kind: pa.DataType) -> pa.Array:
    count = len(texts)
    values = {
        "entity_group": pa.array(["PER"] * count),
        "word": pc.fill_null(pc.utf8_slice_codeunits(texts, 0, 1), ""),
        "score": pa.array([0.5] * count, pa.float32()),
        "start": pa.array([0] * count, pa.int32()),
        "end": pa.array([1] * count, pa.int32()),
    }
    fields = list(kind.value_type)
    items = pa.StructArray.from_arrays([values[each.name] for each in fields], fields=fields)
    return pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), items).cast(kind)


def load(made: plan.Plan) -> Any:
    """Return the stub in place of a plan's scorer."""
    return StubScorer({each.task.name: each.task.arrow_type for each in made.tasks})


plan.load = load
