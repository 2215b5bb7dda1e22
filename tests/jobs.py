"""What the tests of jobs share: the rows of their source, the time, the type of what runs them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lakescore import RunSummary

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
ROWS = [(nth, f"Maria {nth} lives in Lisbon" if nth % 10 else None) for nth in range(60)]
Run = Callable[..., RunSummary]
# Room for classes from the start: each time it grows, all of the heap is looked through. Hadoop
# starts a process for every file that it makes, which is quicker without a helper; only Linux can.
_JVM = "-XX:+UseSerialGC -XX:MetaspaceSize=256m"
if sys.platform == "linux":
    _JVM += " -Djdk.lang.Process.launchMechanism=VFORK"
# For a JVM that lives for a minute: compiled once, quickly, by few threads. In `make faults` one
# lives for hours: with the 48 MiB for code that such a JVM has, it ends by compiling all the time.
_BRIEF = f"{_JVM} -XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m"
BRIEF_JVM = {"spark.driver.extraJavaOptions": _BRIEF, "spark.executor.extraJavaOptions": _BRIEF}
# For one that lives for minutes: only what runs very often is compiled a second time.
_LASTING = f"{_JVM} -XX:Tier4InvocationThreshold=15000 -XX:Tier4CompileThreshold=30000"
_LASTING += " -Xms1g -Xmn512m"
LASTING_JVM = {"spark.driver.extraJavaOptions": _LASTING}
# For hundreds of small jobs: nothing is gained by planning them twice, nor by compiling them.
SMALL_JOBS = {
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.shuffle.partitions": "1",
    "spark.databricks.delta.snapshotPartitions": "1",
}
# Faults strike where rows are divided, too.
FAULT_JOBS = BRIEF_JVM | SMALL_JOBS | {"spark.sql.shuffle.partitions": "2"}


def brief_spark(folder: Path) -> dict[str, str]:
    """The environment of a process that starts a Spark of its own, for a minute and small jobs."""
    conf = folder / "spark-conf"
    conf.mkdir()
    lines = (f"{name} {value}\n" for name, value in (SMALL_JOBS | BRIEF_JVM).items())
    (conf / "spark-defaults.conf").write_text("".join(lines))
    return {"SPARK_CONF_DIR": str(conf)}


# Does tasks in a Spark that is there, as on Databricks: SQL, and files of jobs/.
DRIVER = """
import contextlib, io, json, os, runpy, sys
from pathlib import Path
import lakescore
from lakescore.session import local_session
from pyspark.sql import SparkSession

def do(spark):
    yield lakescore.__file__
    for kind, what, *arguments in json.load(sys.stdin):
        if kind == "sql":
            spark.sql(what)
            continue
        sys.argv = [what, *arguments]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            runpy.run_path(what, run_name="__main__")
        yield json.loads(printed.getvalue().splitlines()[-1])

if "SPARK_REMOTE" in os.environ:
    answers = list(do(SparkSession.builder.getOrCreate()))
else:
    settings = json.loads(os.environ["SETTINGS"])
    with local_session(settings=settings, log_file=Path("spark.log").absolute()) as spark:
        answers = list(do(spark))
with open("answers.json", "w") as file:
    json.dump(answers, file)
"""


def tasks_done(
    folder: Path, library: Path, tasks: list[Any], *, server: str | None = None
) -> list[Any]:
    """Let a driver that has the wheel alone do tasks; return where that is, and what each said.

    Its Spark is that of a Connect server, or one of its own, as in dedicated access mode.
    """
    own = {"DATABRICKS_RUNTIME_VERSION": "18.0", "PYTHONPATH": str(library), "PYTHONSAFEPATH": "1"}
    own |= {"SPARK_REMOTE": server} if server else {"SETTINGS": json.dumps(SMALL_JOBS | BRIEF_JVM)}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=folder,
        env=os.environ | own,
        input=json.dumps(tasks),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[Any] = json.loads((folder / "answers.json").read_text("utf-8"))
    return answers
