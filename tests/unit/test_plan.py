from collections.abc import Iterator
from pathlib import Path

import pytest

from lakescore import plan
from lakescore.config import EncodingConfig
from lakescore.distribute import Shipped
from lakescore.plan import Plan, PlannedTask, load
from lakescore.snapshot import resolve
from lakescore.tasks.entities import Entities


@pytest.fixture
def planned(entity_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plan]:
    snapshot = resolve(str(entity_model), task="entities", cache=tmp_path)
    monkeypatch.setattr(Shipped, "folder", lambda self: snapshot.folder)
    task = Entities(snapshot.labels, aggregation="first")
    shipped = Shipped(snapshot.fingerprint, None, None)
    yield Plan((PlannedTask(task, snapshot, shipped),), EncodingConfig())
    plan._encoder.cache_clear()


def test_a_worker_loads_a_model_once_and_holds_it_on_one_device(
    planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = iter(["cpu", "cpu", "cpu:0", "cpu:0", "cpu"])  # the names of two, for torch
    monkeypatch.setattr(plan, "task_device", lambda count: (next(devices), 1))
    encoders = []
    for _ in range(5):
        encoders.append(load(planned).tasks[0].encoder)
        assert plan._encoder.cache_info().currsize == 1
    first, again, moved, still, back = encoders
    assert first is again
    assert moved is still
    assert len({id(first), id(moved), id(back)}) == 3
    assert [str(each.device) for each in (first, moved, back)] == ["cpu", "cpu:0", "cpu"]
