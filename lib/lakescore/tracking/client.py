"""The import of MLflow: quiet, and with its errors in lakescore's own words."""

import logging
import logging.config
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lakescore.errors import LakescoreError, ModelError, SetupError
from lakescore.locks import locked

_SHOWN = 5
_QUIET_LOGGERS = ("mlflow", "alembic", "git", "sqlalchemy")


def configure(
    tracking_uri: str | None, experiment: str | None, *, registry_uri: str | None = None
) -> None:
    """Point MLflow at its stores; None leaves MLflow's own setting, as Databricks makes it.

    Args:
        tracking_uri: For instance `sqlite:///mlflow.db`.
        experiment: Made if it is missing; on Databricks a workspace path, which MLflow has without
            /Workspace: it does not find one that is named with it.
        registry_uri: `databricks-uc` for Unity Catalog, whose names have three parts.

    Raises:
        SetupError: If a store cannot be reached.
    """
    shown = without_password(tracking_uri or "its default store")
    with setup_errors(shown), quiet():
        mlflow = load_mlflow()
        if tracking_uri is not None:
            mlflow.set_tracking_uri(tracking_uri)
        if registry_uri is not None:
            mlflow.set_registry_uri(registry_uri)
        _, is_file, path = (tracking_uri or "").partition("sqlite:///")
        with ExitStack() as lock:
            if is_file:  # two processes that make one at once disturb each other
                lock.enter_context(locked(os.path.abspath(path), wait=True, is_file=True))
                mlflow.search_experiments(max_results=1)
            if experiment is not None:
                mlflow.set_experiment(re.sub("^/Workspace(?=/)", "", experiment))


def describe_store() -> str:
    """Say which stores are in use and what the registry holds, after asking both.

    Raises:
        SetupError: If one cannot be reached.
    """
    mlflow = load_mlflow()
    place = without_password(str(mlflow.get_tracking_uri()))
    registry = without_password(str(mlflow.get_registry_uri()))
    with setup_errors(place), quiet():
        client = mlflow.MlflowClient()
        client.search_experiments(max_results=1)
        models = [model.name for model in client.search_registered_models(max_results=_SHOWN)]
    shown = ", ".join(models) or "none"
    elsewhere = f", registry {registry}" if registry != place else ""
    more = ", …" if len(models) == _SHOWN else ""
    return f"MLflow {mlflow.__version__}, {place}{elsewhere}; registered models: {shown}{more}"


def load_mlflow() -> Any:
    """Import MLflow without its progress bars, links, telemetry and complaints about git."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow

    return mlflow


@contextmanager
def quiet() -> Iterator[None]:
    """Let MLflow speak of errors only; its exceptions say what went wrong."""
    loggers = [logging.getLogger(name) for name in _QUIET_LOGGERS]
    levels = [each.level for each in loggers]
    # The migrations of MLflow 2 set up the logging of the whole process anew, by this function.
    file_config = logging.config.fileConfig
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for each in loggers:
                each.setLevel(logging.ERROR)
            logging.config.fileConfig = lambda *_, **__: None
            yield
        finally:
            logging.config.fileConfig = file_config
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)


@contextmanager
def model_errors(uri: str, remedy: str) -> Iterator[None]:
    """Name the model in what MLflow raises about it."""
    load_mlflow()
    try:
        yield
    except LakescoreError:
        raise
    except Exception as error:  # MLflow's own, and whatever its stores raise
        store = without_password(str(load_mlflow().get_registry_uri()))
        raise ModelError(f"{uri}: {first_line(error)} (registry {store}); {remedy}") from error


@contextmanager
def setup_errors(place: str) -> Iterator[None]:
    """Name the store or the step in what MLflow raises while it is set up."""
    load_mlflow()
    try:
        yield
    except LakescoreError:
        raise
    except Exception as error:  # as above
        remedy = "check the tracking URI and the experiment"
        if isinstance(error, ImportError):
            remedy = "its local store needs the versions in the package's extra `local`"
        raise SetupError(f"MLflow, {place}: {first_line(error)}; {remedy}") from error


def cut(text: str, characters: int) -> str:
    """Shorten a text that is longer, and show that it was."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


def first_line(error: Exception) -> str:
    """Say in one short line what went wrong."""
    lines = without_password(str(error)).strip().splitlines()
    return cut(
        f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__, 200
    ).rstrip(".")


def without_password(uri: str) -> str:
    """Hide the user and the password of a URI."""
    return re.sub(r"//[^/@]*@", "//…@", uri)
