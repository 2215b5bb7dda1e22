"""A driver process of its own: runs the commands that it is told on stdin, one line of JSON each.

It answers each with a line of JSON: the run's summary, or the kind and the message of its error.
A line that holds the settings of several jobs runs them at once, each in a thread with a session
of its own; they are answered together, with the table of each commit of rows that met a conflict.
"""

import json
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from lakescore import JobConfig, LakescoreError, failpoints, rescore_table, retry_table, score_table
from lakescore.purge import purge_target
from lakescore.session import local_session
from lakescore.tables import writing
from tests.jobs import FAULT_JOBS

RUNS = {"score": score_table, "retry": retry_table, "rescore": rescore_table}
# Commits of one process are atomic with it, as those of an object store are.
LOG_STORE = {"spark.delta.logStore.file.impl": "io.delta.storage.LocalLogStore"}


def main(master: str, log_file: str) -> None:
    """Start Spark, say so, and run what comes."""
    settings = FAULT_JOBS | LOG_STORE | {"spark.sql.warehouse.dir": f"{log_file}.warehouse"}
    with local_session(
        "faults", master=master, settings=settings, log_file=Path(log_file)
    ) as spark:
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            print(json.dumps(_answer(spark, **json.loads(line))), flush=True)


def _answer(spark: Any, *, command: str, settings: Any, unlocked: bool, failpoint: str) -> Any:
    failpoints.UNLOCKED = unlocked
    failpoints.order(failpoint)
    failpoints.UNLOCKED_COMMITS = isinstance(settings, list)
    if not isinstance(settings, list):
        return _run(spark, command, settings)
    conflicts: list[str] = []  # the tables where another writer came between a commit of rows
    committed = writing.committed

    def counted(spark: Any, table: str, action: Callable[[], None]) -> None:
        attempts = count()

        def attempt() -> None:
            if next(attempts):
                conflicts.append(table)
            action()

        committed(spark, table, attempt)

    writing.committed = counted
    try:
        with ThreadPoolExecutor(len(settings)) as threads:
            jobs = [threads.submit(_run, spark.newSession(), command, job) for job in settings]
            answers = [job.result() for job in jobs]
    finally:
        writing.committed = committed
    return {"answers": answers, "conflicts": conflicts}


def _run(spark: Any, command: str, settings: dict[str, Any]) -> Any:
    try:
        config = JobConfig.parse(settings)
        if command == "purge":
            return asdict(purge_target(spark, config, retain_hours=0))
        run = RUNS[command]
        now = datetime.now(UTC)
        return asdict(run(spark, config, now=now))
    except Exception as error:  # also what is not lakescore's own: the case is to see it
        if not isinstance(error, LakescoreError):
            traceback.print_exc()
        return {"error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    main(*sys.argv[1:])
