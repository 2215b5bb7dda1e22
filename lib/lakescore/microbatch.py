"""A micro-batch from its rows to one commit of the target: staged, counted, checked, written."""

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any

from lakescore import metrics, tracking
from lakescore.config import Write
from lakescore.distribute import spread
from lakescore.errors import BudgetError, RefusedRowsError
from lakescore.failpoints import reached
from lakescore.frame import score_with
from lakescore.metrics import Totals
from lakescore.opening import Job
from lakescore.tables import commits, names, remove, source, stage, writing
from lakescore.tables.changes import CHANGE, DELETE, DOUBLE, HASH, INSERT, REFRESH, TEXT
from lakescore.tables.constraints import check_constraints
from lakescore.tables.names import quoted
from lakescore.tables.stream import Expected

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, Row, SparkSession


class MicroBatches:
    """Commits each micro-batch of a run once, and counts what was committed.

    A micro-batch counts once the next one begins, or the run ends: until then Spark has not
    written down that it is done, and another run may do it again.

    Attributes:
        job: what the run works on.
        totals: what was committed, and counts.
        before_first_write: is called once, when all that could refuse rows has been passed.
        has_written: whether it was.
        guard: is called before each attempt to commit: it raises where this run is not to write
            any more.
        rows_expected: how many rows the run has before it, once that is known.
        rows_leaving: how many rows leave the target with an overwrite, of which they are no part.
    """

    def __init__(
        self,
        job: Job,
        run: tracking.Run,
        *,
        now: datetime,
        how: Write,
        budget: float | None,
        stages: str,
        rows_done: Any,
    ) -> None:
        """Work for `run`; what is scored and not committed yet is in the folder `stages`.

        `budget` is the share of rows that may fail, and `rows_done` counts rows as they are scored.
        """
        self.job = job
        self.totals = Totals()
        self.before_first_write: Callable[[], None] = lambda: None
        self.has_written = False
        self.guard: Callable[[], None] = lambda: None
        self.rows_expected: int | None = None
        self.rows_leaving = 0
        self._rows_read: int | None = None
        self._run = run
        self._now = now
        self._how = how
        self._budget = budget
        self._stages = stages
        self._rows_done = rows_done
        self._pending: Totals | None = None
        self._number = 0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    def commit(
        self,
        rows: "DataFrame",
        app: str,
        number: int,
        *,
        expected: Callable[[], Expected | None],
    ) -> None:
        """Score rows and commit them to the target, unless a run before has done so.

        Args:
            rows: the target's carried columns, `HASH`, `CHANGE`, and the text.
            app: the application that numbers its micro-batches.
            number: the micro-batch's, from 0 on.
            expected: counts the run's rows, or returns None where that cannot be known.

        Raises:
            BudgetError: more rows failed than the job allows; nothing was written.
            BusyError: another run of the same job was faster.
            RefusedRowsError: keys are null or double, or rows break a constraint.
            TableError: a table cannot be written.
        """
        self.settle()
        reached("batch_begun")
        spark, transaction = rows.sparkSession, commits.Commit(app=app, number=number)
        remove(spark, f"{self._stages}/{app}-{number - 1}")
        folder = f"{self._stages}/{app}-{number}"
        staged = stage.find(spark, folder)
        if staged is not None and self._was_committed(spark, transaction, staged):
            return
        # What had been deleted or changed another source may have taken over since.
        is_doubtful = self.job.is_shared and self.job.config.source.changes == "cdf"
        if staged is None or staged.digest != self.job.digest or is_doubtful:
            if staged is not None:
                remove(spark, folder)
            self._stage(rows, folder)
        reached("batch_staged")
        if self.rows_expected is None and (known := expected()) is not None:
            self.rows_expected = self.totals.rows + known.ahead
            self._rows_read = known.read
        try:
            with stage.kept(spark, folder):
                self._write(names.load(spark, folder), transaction)
        except (BudgetError, RefusedRowsError):  # a later run shall score it anew
            remove(spark, self._stages)
            raise

    def settle(self) -> None:
        """Count the last micro-batch: Spark has written down that it is done."""
        if self._pending is not None:
            self.totals.add(self._pending)
            self._pending = None
            self._run.log_metrics(self.totals.metrics(self.seconds), step=self._number)
            self._number += 1

    def end(self, spark: "SparkSession") -> None:
        """Count the last micro-batch, and remove what was put aside."""
        self.settle()
        remove(spark, self._stages)
        reached("stage_removed")

    def _was_committed(
        self, spark: "SparkSession", transaction: commits.Commit, staged: stage.Manifest
    ) -> bool:
        found = commits.find_commit(
            spark, self.job.target, transaction, since=staged.target_version
        )
        if found is not None:
            self._pending = Totals(found["sums"], found["refreshed"], found["deleted"])
        return found is not None

    def _stage(self, rows: "DataFrame", folder: str) -> None:
        from pyspark.sql import functions as F

        job = self.job
        is_scored = ~F.col(CHANGE).isin(DELETE, REFRESH)
        carried = [name for name in rows.columns if name in {*job.carried, HASH, CHANGE}]
        given = spread(rows, job.config.source.partitions)
        given = given.withColumn(TEXT, F.when(is_scored, F.col(quoted(job.config.source.text))))
        scored = score_with(
            job.plan, given, carried=carried, text=TEXT, rows_done=self._rows_done
        ).withColumns({"run_id": F.lit(self._run.id), "scored_at": F.lit(self._now)})
        manifest = stage.Manifest(
            digest=job.digest,
            target_version=job.target_version,
        )
        stage.write(scored, folder, manifest)

    def _write(self, staged: "DataFrame", transaction: commits.Commit) -> None:
        """Count and check what is staged, and write it."""
        job = self.job
        ranged = writing.ranged(job.schema, job.key, job.config.source.text)
        groups = self._count(staged, ranged)
        rows_of = {row[CHANGE]: int(row[metrics.ROWS]) for row in groups}
        counts = Totals(
            _summed([row for row in groups if row[CHANGE] not in (DELETE, REFRESH)]),
            refreshed=rows_of.get(REFRESH, 0),
            deleted=rows_of.get(DELETE, 0) + self.rows_leaving,
        )
        if counts.rows != counts.scored + sum(counts.failed.values()):
            raise AssertionError(f"{counts}: rows that neither have scores nor a known error")

        self._check_keys(staged, groups, rows_of)
        ends = {
            name: [row[f"{kind} {name}"] for row in groups for kind in ("least", "greatest")]
            for name in ranged
        }
        of_keys = writing.ranges(ends, job.schema)
        check_constraints(
            staged,
            job.target,
            self._how,
            key=job.key,
            ranges=of_keys,
            results=job.results,
            outdated=job.outdated,
        )
        self._check_budget(counts)
        reached("batch_checked")
        if not self.has_written:
            self.before_first_write()
            self.has_written = True
        note = {"run_id": self._run.id, "since": job.target_version, **vars(counts)}
        if self._rows_read is not None:
            self._rows_read += counts.rows
            note["rows_read"] = self._rows_read
        writing.write(
            staged,
            job.target,
            self._how,
            commits.Commit(app=transaction.app, number=transaction.number, note=note),
            source=job.source.table,
            key=job.key,
            ranges=of_keys,
            results=job.results,
            outdated=job.outdated,
            guard=self.guard,
        )
        self._pending = counts
        reached("batch_committed")

    def _count(self, staged: "DataFrame", ranged: "Mapping[str, Column]") -> list["Row"]:
        """Return, for each kind of change, the sums of its rows and the ends of its keys."""
        from pyspark.sql import functions as F

        is_null = reduce(
            lambda a, b: a | b, (F.col(quoted(name)).isNull() for name in self.job.key)
        )
        ends = [
            function(value).alias(f"{kind} {name}")
            for name, value in ranged.items()
            for kind, function in (("least", F.min), ("greatest", F.max))
        ]
        null = F.count_if(is_null).alias("null keys")
        return staged.groupBy(CHANGE).agg(*self._sums, null, *ends).collect()

    @cached_property
    def _sums(self) -> list["Column"]:
        return metrics.sums([each.task for each in self.job.plan.tasks])

    def _check_keys(
        self, staged: "DataFrame", groups: list["Row"], rows_of: Mapping[str, int]
    ) -> None:
        """Check that every key is there, and once.

        Raises:
            RefusedRowsError: it is not.
        """
        job = self.job
        source.refuse_null_keys(
            job.source.table,
            job.key,
            # A row that is gone may have had none: the target never had it.
            sum(int(row["null keys"]) for row in groups if row[CHANGE] != DELETE),
        )
        source.refuse_double_keys(job.source.table, job.key, rows_of.get(DOUBLE, 0))
        if job.config.source.changes == "append" and rows_of.get(INSERT, 0):
            source.check_keys(staged, job.source.table, job.key)

    def _check_budget(self, counts: Totals) -> None:
        """Check that no more rows failed than may.

        Raises:
            BudgetError: more did.
        """
        budget = self._budget
        so_far = Totals(dict(self.totals.sums))
        so_far.add(counts)
        failed = sum(so_far.failed.values())
        rows = max(so_far.rows, self.rows_expected or 0)
        if budget is None or not rows or failed / rows <= budget:
            return
        by_code = ", ".join(f"{code} {count:,}" for code, count in so_far.failed.items())
        raise BudgetError(
            f"{self.job.target}: {failed:,} of {rows:,} rows failed ({by_code}), over "
            f"limits.max_error_fraction {budget:g}; the micro-batch at hand was not written. Mend "
            "the model, the settings or the limit and run again (with a higher limit its rows come "
            "into the target, each with its error); rows that were mended in the source want more: "
            f"{source.RECOVER}"
        )


def _summed(groups: list["Row"]) -> dict[str, float]:
    """Add the sums of several kinds of change."""
    sums: dict[str, float] = {}
    for row in groups:
        for name, value in row.asDict().items():
            if isinstance(value, float):  # as sums alone are: no key of that type has its ends told
                sums[name] = sums.get(name, 0.0) + value
    return sums
