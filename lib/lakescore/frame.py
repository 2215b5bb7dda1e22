"""Whole tables: every row of a DataFrame in, the same row with its results out."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lakescore import tracking
from lakescore.config import JobConfig, SourceConfig
from lakescore.errors import TableError, without_words
from lakescore.plan import Plan, load, make_plan
from lakescore.tables import CHANGE, HASH, quoted
from lakescore.tables.changes import STEP, TEXT

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


# What comes beside `Plan.result_columns`: which models made them, and in which run of a job.
RUN_COLUMNS = ("model", "run_id", "scored_at")
# Columns that the job has of its own on the way, and all that are not the source's.
OWN_COLUMNS = frozenset((HASH, CHANGE, STEP, TEXT))
ADDED_COLUMNS = OWN_COLUMNS.union(RUN_COLUMNS)


def score(df: "DataFrame", config: JobConfig) -> "DataFrame":
    """Return `df` with a column per task, and the columns `n_tokens`, `error` and `model`.

    All tasks are scored in one pass. `error` (code, detail) is null for a row that was scored;
    for one that could not be, the tasks' columns are. Of `config` are read `tasks`, `encoding`,
    the key, the text and the columns of `source`, and the two URIs of `mlflow`: no run is recorded.

    Raises:
        ModelError: a model cannot be resolved, is unsafe, or does not fit its task.
        SetupError: MLflow's store cannot be reached.
        TableError: a column is missing, is not text, or has a name that scoring needs.
    """
    at = config.mlflow
    if at.tracking_uri or at.registry_uri:  # the models may be there
        tracking.configure(at.tracking_uri, None, registry_uri=at.registry_uri)
    plan = make_plan(df.sparkSession, config.tasks, config.encoding)
    carried = carried_columns(df, config.source, plan)
    return score_with(plan, df, carried=carried, text=config.source.text)


def score_with(
    plan: Plan, df: "DataFrame", *, carried: list[str], text: str, rows_done: Any = None
) -> "DataFrame":
    """Score the column `text` of `df`, and keep the `carried` ones, by models that are resolved.

    `rows_done` is a Spark accumulator, or None: it shows progress, and counts rows of a task that
    was repeated again.
    """
    from pyspark.sql import functions as F
    from pyspark.sql.pandas.types import from_arrow_type
    from pyspark.sql.types import StructField, StructType

    wanted = list(dict.fromkeys([*carried, text]))
    chosen = df.select(*(F.col(quoted(name)) for name in wanted))
    schema = StructType(
        [chosen.schema[name] for name in carried]
        + [StructField(name, from_arrow_type(kind)) for name, kind in plan.result_columns]
    )
    # By position, since mapInArrow cannot find a column whose name holds a dot.
    numbered = chosen.toDF(*(f"column_{nth}" for nth in range(len(wanted))))
    score_batches = _batch_function(plan, wanted.index(text), schema.names, rows_done)
    scored = numbered.mapInArrow(score_batches, schema)
    versions = [F.lit(value) for item in plan.versions.items() for value in item]
    return scored.withColumn("model", F.create_map(*versions))


def carried_columns(df: "DataFrame", source: SourceConfig, plan: Plan) -> list[str]:
    """Return the columns of `df` to keep, having checked that all that is needed is there.

    Raises:
        TableError: a column is missing, is not text, or has a name that scoring needs.
    """
    types = dict(df.dtypes)
    wanted = df.columns if source.columns is None else source.columns
    carried = list(dict.fromkeys([*source.key, *wanted]))
    for setting, name in [
        *(("source.key", name) for name in source.key),
        ("source.text", source.text),
        *(("source.columns", name) for name in source.columns or ()),
    ]:
        if name not in types:
            raise TableError(f"{setting}: no column {name!r}; there are {', '.join(df.columns)}")
    if types[source.text] not in ("string", "binary"):
        raise TableError(
            f"source.text: column {source.text!r} is {types[source.text]}, not string; cast it"
        )
    for name in source.key:
        if re.search(r"\b(map<|variant\b)", types[name]):
            raise TableError(
                f"source.key: column {name!r} is {types[name]}, which cannot be compared; name "
                "other columns"
            )
    made = {name for name, _ in plan.result_columns} | ADDED_COLUMNS
    taken = [name for name in carried if name.lower() in made]
    if source.text.lower() in OWN_COLUMNS - {TEXT}:
        taken.append(source.text)
    if taken:
        raise TableError(
            f"source column {taken[0]!r} has the name of a column that scoring adds; rename it, "
            "or leave it out of source.columns"
        )
    return carried


def _batch_function(
    plan: Plan, text: int, names: list[str], rows_done: Any
) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the function for `mapInArrow`: carried columns, then `plan.result_columns`.

    `text` is the place of the text among the columns that come in; `names` are those of the
    columns that go out, of which the carried ones come in, in the same order, before others.
    Every row that goes in comes out, in its place.
    """
    carried = len(names) - len(plan.result_columns)

    def score_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        waiting: deque[pa.RecordBatch] = deque()

        def texts() -> Iterator[pa.Array]:
            for batch in batches:
                waiting.append(batch)
                yield batch.column(text)

        with without_words():
            for results in load(plan).score(texts()):
                batch = waiting.popleft()
                if len(results.n_tokens) != batch.num_rows:
                    raise AssertionError(f"{len(results.n_tokens)} rows out of {batch.num_rows}")
                columns = [*batch.columns[:carried], *results.columns.values()]
                columns += [results.n_tokens, results.error]
                if rows_done is not None:
                    rows_done.add(batch.num_rows)
                yield pa.RecordBatch.from_arrays(columns, names=names)
            if waiting:
                raise AssertionError(f"{len(waiting)} Arrow batches were not scored")

    return score_batches
