"""A driver process of its own: runs the jobs that it is told on stdin, one line of JSON each.

It answers each with a line of JSON: the run's summary, or the kind and the message of its error.
"""

import json
import sys
import traceback
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from lakescore import JobConfig, LakescoreError, failpoints, score_table
from lakescore.session import local_session
from tests.jobs import BRIEF_JVM


def main(master: str, log_file: str) -> None:
    """Start Spark, say so, and run what comes."""
    settings = BRIEF_JVM | {"spark.sql.warehouse.dir": f"{log_file}.warehouse"}
    with local_session(
        "faults", master=master, settings=settings, log_file=Path(log_file)
    ) as spark:
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            message = json.loads(line)
            config = JobConfig.parse(message["settings"])
            failpoints.UNLOCKED = message["unlocked"]
            try:
                summary = score_table(
                    spark, config, now=datetime.now(UTC), progress=lambda done, total: None
                )
                answer = asdict(summary)
            except Exception as error:  # also what is not lakescore's own: the case is to see it
                if not isinstance(error, LakescoreError):
                    traceback.print_exc()
                answer = {"error": type(error).__name__, "message": str(error)}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
