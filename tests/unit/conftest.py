"""A tiny model to be spoiled, and a cache for its snapshots."""

import shutil
from pathlib import Path

import pytest

from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("shipped") / "entities")


@pytest.fixture
def model(shipped: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be spoiled."""
    return Path(shutil.copytree(shipped, tmp_path / "model"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
