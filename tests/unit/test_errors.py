"""Errors in Python workers: what is said of them, and what is not."""

import traceback

import pytest

from lakescore.errors import ModelError, WorkerError, root_cause, without_words


def test_an_error_that_quotes_a_text_is_said_by_its_kind_and_place() -> None:
    with pytest.raises(WorkerError) as raised, without_words():
        raise ValueError("cannot read 'Maria lives in Lisbon'")
    assert str(raised.value).startswith("ValueError in test_an_error_that_quotes_a_text_is_said")
    assert "test_errors.py:" in str(raised.value)
    frames = traceback.format_exception_only(raised.value)
    assert "Maria" not in "".join(frames) and raised.value.__suppress_context__


def test_an_error_of_lakescores_own_is_left_as_it_is() -> None:
    error = ModelError("m: has no labels")
    with pytest.raises(ModelError) as raised, without_words():
        raise error
    assert raised.value is error


class NumberFormatException(Exception):
    """As pyspark has it."""


class AnalysisException(Exception):
    """As pyspark has it."""


def test_of_what_spark_met_in_a_row_the_name_is_said_and_of_a_plan_all() -> None:
    met = NumberFormatException("[CAST_INVALID_INPUT] The value 'Maria' cannot be cast")
    assert root_cause(met) == "NumberFormatException: [CAST_INVALID_INPUT]"
    plan = AnalysisException("[UNRESOLVED_COLUMN] There is no column x\nProject")
    assert root_cause(plan) == "AnalysisException: [UNRESOLVED_COLUMN] There is no column x"
    assert root_cause(OSError("disk gone")) == "OSError: disk gone"
