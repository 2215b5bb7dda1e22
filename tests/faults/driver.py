"""A driver process of its own: runs the commands that it is told on stdin, one line of JSON each.

It answers each with a line of JSON: the run's summary, or the kind and the message of its error.
"""

import json
import sys
import traceback
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lakescore import JobConfig, LakescoreError, failpoints, rescore_table, retry_table, score_table
from lakescore.purge import purge_target
from lakescore.session import local_session
from tests.jobs import BRIEF_JVM

RUNS = {"score": score_table, "retry": retry_table, "rescore": rescore_table}


def main(master: str, log_file: str) -> None:
    """Start Spark, say so, and run what comes."""
    settings = BRIEF_JVM | {"spark.sql.warehouse.dir": f"{log_file}.warehouse"}
    with local_session(
        "faults", master=master, settings=settings, log_file=Path(log_file)
    ) as spark:
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            print(json.dumps(_answer(spark, **json.loads(line))), flush=True)


def _answer(spark: Any, *, command: str, settings: dict[str, Any], unlocked: bool) -> Any:
    failpoints.UNLOCKED = unlocked
    try:
        config = JobConfig.parse(settings)
        if command == "purge":
            return asdict(purge_target(spark, config, retain_hours=0))
        run = RUNS[command]
        now = datetime.now(UTC)
        return asdict(run(spark, config, now=now, progress=lambda done, total: None))
    except Exception as error:  # also what is not lakescore's own: the case is to see it
        if not isinstance(error, LakescoreError):
            traceback.print_exc()
        return {"error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    main(*sys.argv[1:])
