import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.spark

POISONED = {"30", "31", "77"}
LOST = {"code": "worker_lost", "detail": "the process that scored this text died of it"}


def near(value: Any) -> Any:
    """What equals `value` but for the last digits of scores.

    They depend on which texts are in a batch together: a piece of a column has other batches.
    """
    if isinstance(value, dict):
        return {name: near(each) for name, each in value.items()}
    if isinstance(value, list):
        return [near(each) for each in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, entity_model: Path, sentiment_model: Path
) -> dict[str, Any]:
    """What a driver of its own has scored, with texts that kill their Python worker."""
    folder = tmp_path_factory.mktemp("isolation")
    driver = Path(__file__).with_name("isolation_driver.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(folder), str(entity_model), str(sentiment_model)],
        env=os.environ | {"LAKESCORE_POISON": "XPOISONX"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads((folder / "found.json").read_text()))


def test_texts_that_kill_their_worker_fail_alone_and_all_others_are_scored(
    found: dict[str, Any],
) -> None:
    clean, poisoned = found["clean"], found["poisoned"]
    assert len(clean) == 200
    assert {row for row in poisoned if poisoned[row]["error"]} == POISONED
    for row in POISONED:
        failed = {"entities": None, "sentiment": None, "n_tokens": 0, "error": LOST}
        assert poisoned[row] == clean[row] | failed
    others = clean.keys() - POISONED
    assert {row: poisoned[row] for row in others} == {row: near(clean[row]) for row in others}


def test_a_column_gives_null_for_such_a_text_and_the_same_for_others(found: dict[str, Any]) -> None:
    expected = {str(row): near(found["clean"][str(row)]["entities"]) for row in range(31, 35)}
    assert found["column"] == expected | {"31": None}
