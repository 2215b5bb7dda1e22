"""MLflow runs: a job's parameters, figures, source and pictures, recorded at no risk to it."""

import logging
import math
import posixpath
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakescore.tracking.client import cut, first_line, load_mlflow, quiet, setup_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_PARAM_CHARACTERS = 500  # Databricks' limit; MLflow's own store takes 6,000
_BATCH = 100  # parameters in one request
_FAILURES_IN_A_ROW = 3


@dataclass(frozen=True)
class RunFigures:
    """What a run has recorded: its parameters and the last value of each metric."""

    run_id: str
    name: str
    status: str
    started: datetime | None
    ended: datetime | None
    params: dict[str, str]
    metrics: dict[str, float]


class Run:
    """An MLflow run that is being recorded; none of its methods raises.

    The first failure is logged as a warning. After three in a row nothing more is sent, since
    every call to a server that is gone waits for its retries.
    """

    def __init__(self, run_id: str, client: Any) -> None:
        """Record into the run of that id, through an MlflowClient."""
        self.id = run_id
        self._client = client
        self._failures = 0
        self._warned = False

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record numbers as of now; what is not finite is left out."""

        def send() -> None:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            finite = {k: float(v) for k, v in metrics.items() if math.isfinite(v)}
            entities = [Metric(_key(key), value, now, step) for key, value in finite.items()]
            self._client.log_batch(self.id, metrics=entities)

        self._try("metrics", send)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record parameters; where values are too long for MLflow, all go to params.json too."""

        def send() -> None:
            from mlflow.entities import Param

            texts = {_key(key): str(value) for key, value in params.items()}
            entities = [Param(key, cut(text, _PARAM_CHARACTERS)) for key, text in texts.items()]
            for start in range(0, len(entities), _BATCH):
                self._client.log_batch(self.id, params=entities[start : start + _BATCH])
            if any(len(text) > _PARAM_CHARACTERS for text in texts.values()):
                self._client.log_dict(self.id, texts, "params.json")

        self._try("parameters", send)

    def log_source(
        self, table: str, version: int | None, *, name: str = "source", context: str = "scoring"
    ) -> None:
        """Record the Delta table that was read: its name or path and its version, no content."""

        def send() -> None:
            from mlflow.data.delta_dataset_source import DeltaDatasetSource
            from mlflow.data.meta_dataset import MetaDataset
            from mlflow.entities import Dataset, DatasetInput, InputTag

            place = {"path": table} if "/" in table else {"delta_table_name": table}
            source = DeltaDatasetSource(delta_table_version=version, **place)
            # A MetaDataset looks at no row, while one made of a frame would run a job.
            dataset = Dataset(**MetaDataset(source, name=name).to_dict())
            tags = [InputTag("mlflow.data.context", context)]
            self._client.log_inputs(self.id, [DatasetInput(dataset, tags)])

        self._try("the source", send)

    def log_figure(self, figure: "Figure", file_name: str) -> None:
        """Store a matplotlib figure as a picture."""
        self._try(file_name, lambda: self._client.log_figure(self.id, figure, file_name))

    def log_text(self, text: str, file_name: str) -> None:
        """Store a text as a file."""
        self._try(file_name, lambda: self._client.log_text(self.id, text, file_name))

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Store a file, in a folder of the run's artifacts."""
        self._try(path.name, lambda: self._client.log_artifact(self.id, str(path), folder))

    def _try(self, what: str, send: Callable[[], object]) -> None:
        if self._failures >= _FAILURES_IN_A_ROW:
            return
        try:
            with quiet():
                send()
            self._failures = 0
        except Exception as error:  # whatever a store raises: the data is worth more than its log
            self._failures += 1
            if not self._warned:
                self._warned = True
                logger.warning(
                    "MLflow run %s: could not record %s (%s); the job goes on without it",
                    self.id,
                    what,
                    first_line(error),
                )


@contextmanager
def start_run(*, name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> Iterator[Run]:
    """Start a run in the configured experiment; inside an active run it becomes its child.

    Raises:
        SetupError: If the run cannot be started; nothing has been done by then.
    """
    with setup_errors("the run's start"), quiet():
        mlflow = load_mlflow()
        active = mlflow.start_run(run_name=name, tags=dict(tags), nested=True)
        run = Run(active.info.run_id, mlflow.MlflowClient())
    run.log_params(params)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        # Also after failures: else the run stays MLflow's active one, and parent of the next.
        run._failures = 0
        run._try("the run's end", lambda: mlflow.end_run(status))


def run_figures(run_id: str) -> RunFigures | None:
    """Return what a run recorded, or None where it cannot be reached."""
    try:
        with quiet():
            run = load_mlflow().MlflowClient().get_run(run_id)
    except Exception as error:  # a report is made with or without the run's figures
        logger.warning("MLflow run %s: cannot be read (%s)", run_id, first_line(error))
        return None
    return RunFigures(
        run_id=run_id,
        name=run.info.run_name or "",
        status=run.info.status,
        started=_moment(run.info.start_time),
        ended=_moment(run.info.end_time),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
    )


def _key(text: str) -> str:
    """Make a name that MLflow takes for a metric or a parameter."""
    key = re.sub(r"[^\w.\- /]", "_", text)[:250]
    if posixpath.normpath(key) != key or key.startswith(("/", "..")):  # it may become a path
        key = key.replace("/", "_").replace("..", "_")
    return key if key not in ("", ".") else "_"


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
