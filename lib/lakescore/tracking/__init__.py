"""MLflow: find, download and register models; record runs. Nothing else imports it.

A run's record is worth less than the table it is about: once a run has started, no failure of
MLflow reaches the caller.
"""

from lakescore.tracking.client import configure, describe_store
from lakescore.tracking.models import RegisteredVersion, download_model, find_model, register
from lakescore.tracking.runs import Run, RunFigures, run_figures, start_run

__all__ = [
    "RegisteredVersion",
    "Run",
    "RunFigures",
    "configure",
    "describe_store",
    "download_model",
    "find_model",
    "register",
    "run_figures",
    "start_run",
]
