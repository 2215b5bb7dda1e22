"""A source, a job's settings, and ways to run it: in the tests' Spark, or on a Connect server."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lakescore import JobConfig, RunSummary, score_table, tracking
from lakescore.session import DELTA_SETTINGS, LAPTOP_SETTINGS
from tests.conftest import HAS_DELTA, ROOT
from tests.jobs import BRIEF_JVM, NOW, ROWS, SMALL_JOBS, Run

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def make_source(spark: "SparkSession", folder: Path) -> None:
    frame = spark.createDataFrame(ROWS, "id long, text string")
    frame.write.format("delta").save(str(folder / "source"))


@pytest.fixture(scope="session")
def made_source(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' source, made once: to copy it takes less than to have Spark write it again."""
    folder = tmp_path_factory.mktemp("source")
    make_source(spark, folder)
    return folder / "source"


@pytest.fixture
def source(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    if not {"begun", "followed", "compared"} & {*request.fixturenames}:
        shutil.copytree(request.getfixturevalue("made_source"), tmp_path / "source")
    return str(tmp_path / "source")


@pytest.fixture(scope="session")
def first_run(
    spark: "SparkSession",
    tmp_path_factory: pytest.TempPathFactory,
    entity_model: Path,
    sentiment_model: Path,
    empty_store: Path,
) -> Callable[[str], Path]:
    """The tests' source, and what a first run by some `source.changes` makes of it, done once."""

    @cache
    def made(changes: str) -> Path:
        folder = tmp_path_factory.mktemp(changes)
        make_source(spark, folder)
        if changes == "cdf":
            feed = "SET TBLPROPERTIES (delta.enableChangeDataFeed = true)"
            spark.sql(f"ALTER TABLE delta.`{folder}/source` {feed}")
        shutil.copy(empty_store, folder / "mlflow.db")
        settings = settings_of(folder, entity_model, sentiment_model)
        settings["source"]["changes"] = changes
        with contextlib.chdir(folder):
            job = JobConfig.parse(settings)
            score_table(spark, job, now=NOW)
        return folder

    return made


def copy_tables(made: Path, folder: Path) -> None:
    for name in ("source", "target", "target_checkpoint", "target_runs"):
        shutil.copytree(made / name, folder / name)


@pytest.fixture
def begun(first_run: Callable[[str], Path], tmp_path: Path) -> None:
    """Begin a test after a first run by `append`, with the settings of `settings`."""
    copy_tables(first_run("append"), tmp_path)


@pytest.fixture
def followed(first_run: Callable[[str], Path], tmp_path: Path) -> None:
    """Begin a test after a first run by `cdf`, of a source that has a change data feed."""
    copy_tables(first_run("cdf"), tmp_path)


@pytest.fixture
def compared(first_run: Callable[[str], Path], tmp_path: Path) -> None:
    """Begin a test after a first run by `snapshot`."""
    copy_tables(first_run("snapshot"), tmp_path)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: to copy it takes less than to make one for each test."""
    store = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking.configure(f"sqlite:///{store}", None)
    return store


@pytest.fixture
def settings(
    source: str, tmp_path: Path, entity_model: Path, sentiment_model: Path, empty_store: Path
) -> dict[str, Any]:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return settings_of(tmp_path, entity_model, sentiment_model)


def settings_of(folder: Path, entity_model: Path, sentiment_model: Path) -> dict[str, Any]:
    """A job's settings whose tables and store are in a folder."""
    return {
        "source": {"table": str(folder / "source"), "key": "id", "partitions": 2},
        "target": {"table": str(folder / "target")},
        "tasks": {
            "entities": {"model": str(entity_model)},
            "sentiment": {"model": str(sentiment_model)},
        },
        "mlflow": {"tracking_uri": f"sqlite:///{folder}/mlflow.db", "experiment": "tests"},
    }


@pytest.fixture
def run(spark: "SparkSession", monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)  # MLflow keeps its artifacts beside where it is started

    def score(
        settings: dict[str, Any], progress: list[tuple[int, int | None]] | None = None
    ) -> RunSummary:
        seen = [] if progress is None else progress
        job = JobConfig.parse(settings)
        return score_table(spark, job, now=NOW, progress=lambda *at: seen.append(at))

    return score


@dataclass(frozen=True)
class ConnectServer:
    """A Spark Connect server: where it listens, and where it keeps its tables."""

    url: str
    warehouse: Path


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has the wheel installed, and nothing else."""
    folder = tmp_path_factory.mktemp("library")
    project = folder / "project"
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        project.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, project)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "lib", project / "lib", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    alone = ["--no-deps", "--no-index"]
    wheel = ["wheel", *alone, "--no-build-isolation", "--wheel-dir", str(folder), str(project)]
    subprocess.run([*pip, *wheel], check=True)
    [built] = folder.glob("*.whl")
    target = folder / "site"
    subprocess.run([*pip, "install", *alone, "--target", str(target), str(built)], check=True)
    return target


@pytest.fixture(scope="session")
def connect_server(
    tmp_path_factory: pytest.TempPathFactory, library: Path
) -> Iterator[ConnectServer]:
    """A process of its own, as a cluster in standard access mode is to its users.

    Of lakescore it has the wheel alone; it has Delta where there is one for this Spark.
    """
    pytest.importorskip("grpc", reason="Spark Connect needs grpcio, which pyspark[connect] brings")
    import pyspark

    folder = tmp_path_factory.mktemp("connect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Connect itself is among pyspark's jars since 4.0.
    newer = int(pyspark.__version__.split(".")[0]) >= 4
    jars = [] if newer else [f"org.apache.spark:spark-connect_2.12:{pyspark.__version__}"]
    settings = LAPTOP_SETTINGS | SMALL_JOBS | BRIEF_JVM
    if HAS_DELTA:
        from delta import configure_spark_with_delta_pip
        from pyspark.sql import SparkSession

        delta = configure_spark_with_delta_pip(SparkSession.builder, jars)._options
        settings = settings | DELTA_SETTINGS | delta
    settings |= {
        "spark.connect.grpc.binding.port": str(port),
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        # What sessions make is known to those that come after them.
        "spark.sql.catalogImplementation": "hive",
        "spark.hadoop.javax.jdo.option.ConnectionURL": f"jdbc:derby:{folder}/store;create=true",
    }
    home = Path(pyspark.__file__).parent
    words = [str(home / "bin/spark-submit"), "--master", "local[2,4]"]
    words += [word for name, value in settings.items() for word in ("--conf", f"{name}={value}")]
    words += [
        "--class",
        "org.apache.spark.sql.connect.service.SparkConnectServer",
        "spark-internal",
    ]
    own = {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(library)}
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            words, cwd=folder, env=os.environ | own, stdout=output, stderr=output
        )
    try:
        while not _listens(port):
            assert server.poll() is None, log.read_text(errors="replace")[-3000:]
            time.sleep(0.2)
        yield ConnectServer(f"sc://127.0.0.1:{port}", folder / "warehouse")
    finally:
        server.kill()
        server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


# pyspark closes a session once more when it is collected, and that may be in the middle of a call
# of another, whose lock it then waits for: so none is collected.
_STOPPED: list[Any] = []


@pytest.fixture(scope="module")
def connect(connect_server: ConnectServer) -> Iterator["SparkSession"]:
    """A session of a Connect server, for which pyspark's functions make columns meanwhile.

    Each has Python workers of its own, which read torch and transformers anew.
    """
    from pyspark.sql.connect.session import SparkSession

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_CONNECT_MODE_ENABLED", "1")
        session: Any = SparkSession.builder.remote(connect_server.url).create()
        yield session
        session.stop()
        _STOPPED.append(session)
