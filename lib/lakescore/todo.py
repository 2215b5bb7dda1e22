"""Rows to score that are known beforehand: put aside, and divided into steps of a bounded size."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lakescore.failpoints import reached
from lakescore.places import folder_of_run
from lakescore.tables import describe, kept, load, quoted, remove, save_aside
from lakescore.tables.changes import CHANGE, DELETE, REFRESH, STEP
from lakescore.tables.commits import app_of
from lakescore.tables.stream import Expected

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from lakescore.opening import Job
    from lakescore.run import Recorder

_ROWS = "rows"


class Todo:
    """Rows put aside in a folder, as they were at this moment, whatever becomes of their tables."""

    def __init__(self, rows: "DataFrame", folder: str) -> None:
        """Put `rows` aside."""
        self._spark: SparkSession = rows.sparkSession
        self._folder = folder
        save_aside(rows, f"{folder}/{_ROWS}")
        reached("todo_written")

    @property
    def rows(self) -> "DataFrame":
        """All of them."""
        return load(self._spark, f"{self._folder}/{_ROWS}")

    def steps(self, rows: int, *, key: Sequence[str], max_bytes: int) -> Iterator["DataFrame"]:
        """Yield all `rows` in parts of about `max_bytes` of files, divided by a hash of the key."""
        from pyspark.sql import functions as F

        size = describe(self._spark, f"{self._folder}/{_ROWS}").bytes
        count = min(math.ceil(size / max_bytes), rows)
        if count <= 1:
            yield self.rows
            return
        step = F.pmod(F.xxhash64(*map(quoted, key)), F.lit(count)).cast("int")
        divided = self.rows.withColumn(STEP, step).repartition(count, STEP)
        save_aside(divided, f"{self._folder}/steps", STEP)
        for nth in range(count):
            yield load(self._spark, f"{self._folder}/steps").where(f"{STEP} = {nth}").drop(STEP)


def score_steps(
    spark: "SparkSession", job: "Job", recorder: "Recorder", rows: "DataFrame", *, max_bytes: int
) -> None:
    """Score rows that are known beforehand, each step of them one commit."""
    from pyspark.sql import functions as F

    folder = f"{job.checkpoint}/{folder_of_run(recorder.run.id)}"
    todo = Todo(rows, folder)
    with kept(spark, f"{folder}/{_ROWS}"):
        is_scored = ~F.col(CHANGE).isin(DELETE, REFRESH)
        found = todo.rows.agg(F.count(F.lit(1)), F.count_if(is_scored)).head()
        assert found is not None  # an aggregate without groups has one row
        if found[0] or job.config.write == "overwrite":
            steps = todo.steps(int(found[0]), key=job.key, max_bytes=max_bytes)
            for number, step in enumerate(steps):
                recorder.batches.commit(
                    step,
                    app_of(recorder.run.id),
                    number,
                    expected=lambda: Expected(int(found[1])),
                )
                recorder.batches.settle()
                recorder.show()
    remove(spark, folder)
    reached("todo_removed")
