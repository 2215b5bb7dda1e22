"""From models named in a configuration to a scorer in every worker."""

import gc
import os
import sys
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from lakescore.config import Dtype, EncodingConfig, TasksConfig
from lakescore.device import device_count, release_memory
from lakescore.distribute import Shipped, is_repeated, ship, task_device
from lakescore.encoder import Encoder, load_tokenizer
from lakescore.isolation import IsolatedScorer
from lakescore.scorer import ERROR_TYPE, Limits, LoadedTask, Scorer
from lakescore.snapshot import Snapshot, resolve
from lakescore.tasks import Task
from lakescore.tasks.entities import Entities
from lakescore.tasks.sentiment import Sentiment
from lakescore.tokens import Tokenizer

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# The columns that scoring adds after those of the tasks.
COMMON_COLUMNS = (("n_tokens", pa.int32()), ("error", ERROR_TYPE))


@dataclass(frozen=True)
class PlannedTask:
    """A task, the snapshot that serves it, and the way of that snapshot to the workers."""

    task: Task
    snapshot: Snapshot
    shipped: Shipped


@dataclass(frozen=True)
class Plan:
    """All that a worker needs to know; made on the driver, carried in a function's closure."""

    tasks: tuple[PlannedTask, ...]
    encoding: EncodingConfig

    @property
    def result_columns(self) -> list[tuple[str, pa.DataType]]:
        """The columns that scoring adds, with their Arrow types."""
        return [(each.task.name, each.task.arrow_type) for each in self.tasks] + list(
            COMMON_COLUMNS
        )

    @property
    def versions(self) -> dict[str, str]:
        """The version of each task's model, as the column `model` has it."""
        return {each.task.name: each.snapshot.version for each in self.tasks}

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each task's model."""
        return {each.task.name: each.snapshot.fingerprint for each in self.tasks}


def make_plan(spark: "SparkSession", tasks: TasksConfig, encoding: EncodingConfig) -> Plan:
    """Resolve the models that `tasks` names, once, and send them to the executors.

    Raises:
        ModelError: a model cannot be resolved, is unsafe, or does not fit its task.
    """
    planned = []
    if tasks.entities is not None:
        snapshot = resolve(tasks.entities.model, task="entities")
        task: Task = Entities(snapshot.labels, aggregation=tasks.entities.aggregation)
        planned.append(PlannedTask(task, snapshot, ship(spark, snapshot)))
    if tasks.sentiment is not None:
        snapshot = resolve(tasks.sentiment.model, task="sentiment")
        task = Sentiment(snapshot.labels, problem_type=snapshot.problem_type)
        planned.append(PlannedTask(task, snapshot, ship(spark, snapshot)))
    return Plan(tuple(planned), encoding)


@dataclass(frozen=True)
class LocalPlan:
    """A plan on a worker's host, its models unpacked; another process can be given it."""

    tasks: tuple[tuple[Task, str, Path], ...]
    encoding: EncodingConfig
    device: str
    threads: int

    def scorer(self) -> Scorer:
        """Return the scorer, whose models are loaded once for the life of this process."""
        encoding = self.encoding
        loaded = []
        for task, tokenizer_fingerprint, folder in self.tasks:
            encoder = _encoder(
                folder, self.device, encoding.dtype, encoding.token_budget, self.threads
            )
            loaded.append(LoadedTask(task, encoder, _tokenizer(tokenizer_fingerprint, folder)))
        limits = Limits(encoding.max_length, encoding.stride, encoding.long_text == "reject")
        return Scorer(loaded, limits)


def load(plan: Plan) -> Scorer | IsolatedScorer:
    """Return the scorer of a plan in this worker.

    A task that Spark tries again scores in a process of its own, since its worker may have died
    of a text.
    """
    device, threads = task_device(device_count())
    if device == "cpu":
        # Else the tokenizer's own threads take the cores of this host's other tasks.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _leave_other_devices(device)
    tasks = tuple(
        (each.task, each.snapshot.tokenizer_fingerprint, each.shipped.folder())
        for each in plan.tasks
    )
    local = LocalPlan(tasks, plan.encoding, device, threads)
    if not is_repeated():
        return local.scorer()
    if device != "cpu":  # the child loads the models once more
        _encoder.cache_clear()
        release_memory()
    return IsolatedScorer(local.scorer, {task.name: task.arrow_type for task, *_ in tasks})


@lru_cache(maxsize=8)
def _encoder(
    folder: Path, device: str, dtype: Dtype, token_budget: int | None, threads: int
) -> Encoder:
    encoder = Encoder(
        folder, device=device, dtype=dtype, token_budget=token_budget, threads=threads
    )
    _spare_the_worker()
    return encoder


@lru_cache(maxsize=1)
def _leave_other_devices(device: str) -> None:
    """Drop what is loaded when Spark gives this worker another GPU: memory there is others'."""
    _encoder.cache_clear()
    release_memory()


@cache
def _spare_the_worker() -> None:
    """Leave out two things that PySpark does at each task, once the first model is loaded."""
    # It collects garbage, which takes 0.1 s for what torch and transformers have imported: none of
    # that ever becomes garbage.
    gc.freeze()
    # It has Python look again into every archive that imports went past; it puts Delta's jars among
    # them, whose lists of files are long.
    for path in [path for path in sys.path_importer_cache if path.endswith(".jar")]:
        del sys.path_importer_cache[path]


_TOKENIZERS: dict[str, Tokenizer] = {}


def _tokenizer(fingerprint: str, folder: Path) -> Tokenizer:
    # Keyed by the tokenizer's files, not by the folder: two models can have the same ones.
    if fingerprint not in _TOKENIZERS:
        _TOKENIZERS[fingerprint] = load_tokenizer(folder)
    return _TOKENIZERS[fingerprint]
