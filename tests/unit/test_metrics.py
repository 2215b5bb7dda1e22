import pytest

from lakescore.metrics import Totals


def test_micro_batches_add_up_to_the_runs_figures() -> None:
    totals = Totals()
    first = {
        "rows": 8.0,
        "rows_scored": 6.0,
        "tokens": 100.0,
        "errors/null_text": 2.0,
        "errors/too_long": 0.0,
        "entities/PER": 3.0,
        "entities/LOC": 1.0,
        "entities_score_sum": 3.0,
        "sentiment/positive": 6.0,
        "sentiment/negative": 0.0,
        "sentiment_score_sum": 4.5,
    }
    totals.add(Totals(first, refreshed=2))
    totals.add(Totals(first | {"sentiment/negative": 0.0}, deleted=3))
    assert (totals.rows, totals.scored, totals.failed) == (16, 12, {"null_text": 4})
    found = totals.metrics(seconds=4.0)
    assert found == {
        "rows": 16,
        "tokens": 200,
        "rows_scored": 12,
        "rows_refreshed": 2,
        "rows_deleted": 3,
        "seconds": 4,
        "rows_per_second": 4,
        "tokens_per_second": 50,
        "errors/null_text": 4,
        "errors/too_long": 0,
        "entities/PER": 6,
        "entities/LOC": 2,
        "entities_mean_score": pytest.approx(0.75),
        "sentiment/positive": 12,
        "sentiment/negative": 0,
        "sentiment_share/positive": 1,
        "sentiment_share/negative": 0,
        "sentiment_mean_score": pytest.approx(0.75),
    }


def test_a_run_without_rows_has_figures_too() -> None:
    assert Totals().metrics(seconds=2.0) == {
        "rows_scored": 0,
        "rows_refreshed": 0,
        "rows_deleted": 0,
        "seconds": 2,
        "rows_per_second": 0,
        "tokens_per_second": 0,
    }
