"""Rows to score that are known beforehand: put aside, and divided into steps of a bounded size."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lakescore.failpoints import reached
from lakescore.tables import describe, load, quoted, remove, save_aside

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_STEP = "_step"


class Todo:
    """Rows put aside in a folder, as they were at this moment, whatever becomes of their tables."""

    def __init__(self, rows: "DataFrame", folder: str) -> None:
        """Put `rows` aside, in place of what a run before has left there."""
        self._spark: SparkSession = rows.sparkSession
        self._folder = folder
        self.remove()
        save_aside(rows, f"{folder}/rows")
        reached("todo_written")

    @property
    def rows(self) -> "DataFrame":
        """All of them."""
        return load(self._spark, f"{self._folder}/rows")

    def steps(self, *, key: Sequence[str], max_bytes: int) -> Iterator["DataFrame"]:
        """Yield parts of about `max_bytes` of files, divided by a hash of the key."""
        from pyspark.sql import functions as F

        size = describe(self._spark, f"{self._folder}/rows").bytes
        count = min(math.ceil(size / max_bytes), self.rows.count())
        if count <= 1:
            yield self.rows
            return
        step = F.pmod(F.xxhash64(*map(quoted, key)), F.lit(count)).cast("int")
        divided = self.rows.withColumn(_STEP, step).repartition(count, _STEP)
        save_aside(divided, f"{self._folder}/steps", _STEP)
        for nth in range(count):
            yield load(self._spark, f"{self._folder}/steps").where(f"{_STEP} = {nth}").drop(_STEP)

    def remove(self) -> None:
        """Remove them."""
        remove(self._spark, self._folder)
