"""What several tests share: one Spark for all of them, and models of a few kilobytes."""

import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.jobs import LASTING_JVM, SMALL_JOBS
from tests.tiny_models import tiny_model

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# No test asserts a time: a slow machine is not a wrong program.
settings.register_profile("lakescore", deadline=None)
settings.load_profile("lakescore")

POISON = "XPOISONX"
ROOT = Path(__file__).resolve().parents[1]


HAS_DELTA = find_spec("delta") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs Delta where there is none, as with the pins of Databricks Runtime 19 ML."""
    if not HAS_DELTA:
        no_delta = pytest.mark.skip(reason="delta-spark is not installed: no jar for this Spark")
        for item in items:
            if item.get_closest_marker("delta"):
                item.add_marker(no_delta)


@pytest.fixture(scope="session", autouse=True)
def _library_for_workers() -> None:
    """Let Python workers, which pytest's own path does not reach, import the library."""
    paths = [str(ROOT / "lib"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep snapshots and what a killed Spark leaves out of the user's folders."""
    os.environ["LAKESCORE_CACHE"] = str(tmp_path_factory.mktemp("snapshots"))
    os.environ["SPARK_LOCAL_DIRS"] = str(tmp_path_factory.mktemp("local"))


@pytest.fixture(scope="session")
def spark_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that all goes to which the JVM and its Python workers print."""
    return tmp_path_factory.mktemp("spark") / "spark.log"


@pytest.fixture
def logged(spark: "SparkSession", spark_log: Path) -> Callable[[], str]:
    """Return what Spark has logged since the test began."""
    began = spark_log.stat().st_size

    def since() -> str:
        with spark_log.open("rb") as log:
            log.seek(began)
            return log.read().decode(errors="replace")

    return since


@pytest.fixture(scope="session")
def spark(spark_log: Path) -> Iterator["SparkSession"]:
    """A local Spark, two tasks at once, where a text with `POISON` kills its worker.

    It has Delta where there is one for this Spark.
    """
    from lakescore.session import LAPTOP_SETTINGS, local_session

    warehouse = {"spark.sql.warehouse.dir": str(spark_log.with_name("warehouse"))}
    settings = SMALL_JOBS | LASTING_JVM | warehouse
    os.environ["LAKESCORE_POISON"] = POISON  # workers have this process's environment
    if not HAS_DELTA:
        from pyspark.sql import SparkSession

        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder = SparkSession.builder.master("local[2,4]")
        plain: Any = builder.config(map=LAPTOP_SETTINGS | settings)
        session = plain.getOrCreate()
        yield session
        session.stop()
        return
    with local_session(
        "tests", master="local[2,4]", settings=settings, log_file=spark_log
    ) as session:
        yield session


@pytest.fixture(scope="session")
def entity_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with CoNLL's labels."""
    return tiny_model(tmp_path_factory.mktemp("models") / "entities")


@pytest.fixture(scope="session")
def sentiment_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with two labels, and the tokenizer of `entity_model`."""
    folder = tmp_path_factory.mktemp("models") / "sentiment"
    return tiny_model(folder, head="sequence-classification")
