import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakescore.batching import pack


def test_the_longest_come_first_within_the_budget() -> None:
    batches = [batch.tolist() for batch in pack(np.array([2, 9, 3, 3]), max_tokens=9, max_rows=8)]
    assert batches == [[1], [2, 3, 0]]


@given(st.lists(st.integers(0, 600)), st.integers(1, 2048), st.integers(1, 50))
def test_every_row_is_in_one_batch_within_the_budget_or_alone(
    lengths: list[int], max_tokens: int, max_rows: int
) -> None:
    batches = list(pack(np.array(lengths, np.int64), max_tokens=max_tokens, max_rows=max_rows))
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= max_tokens


@pytest.mark.parametrize(
    "limits", [{"max_tokens": 0, "max_rows": 1}, {"max_tokens": 1, "max_rows": 0}]
)
def test_a_budget_of_nothing_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        list(pack(np.array([1]), **limits))
