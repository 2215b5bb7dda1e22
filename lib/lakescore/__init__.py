"""lakescore scores the text of Delta tables with Hugging Face models, on Spark.

The public names are imported when they are first used: `import lakescore` is quick, and loads
neither torch nor pyspark.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lakescore._version import __version__

if TYPE_CHECKING:
    from lakescore.config import JobConfig
    from lakescore.errors import (
        BudgetError,
        BusyError,
        ConfigError,
        DataError,
        LakescoreError,
        ModelError,
        RefusedRowsError,
        SetupError,
        TableError,
        WorkerError,
    )
    from lakescore.frame import score
    from lakescore.job import score_table
    from lakescore.rescore import rescore_table, retry_table
    from lakescore.run import RunSummary
    from lakescore.udf import entities, scores, sentiment

__all__ = [
    "BudgetError",
    "BusyError",
    "ConfigError",
    "DataError",
    "JobConfig",
    "LakescoreError",
    "ModelError",
    "RefusedRowsError",
    "RunSummary",
    "SetupError",
    "TableError",
    "WorkerError",
    "__version__",
    "entities",
    "rescore_table",
    "retry_table",
    "score",
    "score_table",
    "scores",
    "sentiment",
]

_MODULE_OF = {
    "JobConfig": "config",
    "RunSummary": "run",
    "rescore_table": "rescore",
    "retry_table": "rescore",
    "score_table": "job",
    "score": "frame",
    "entities": "udf",
    "scores": "udf",
    "sentiment": "udf",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lakescore' has no attribute {name!r}")
    return getattr(import_module(f"lakescore.{_MODULE_OF.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
