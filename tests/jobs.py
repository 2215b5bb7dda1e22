"""What the tests of jobs share: the rows of their source, the time, the type of what runs them."""

from collections.abc import Callable
from datetime import UTC, datetime

from lakescore import RunSummary

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
ROWS = [(nth, f"Maria {nth} lives in Lisbon" if nth % 10 else None) for nth in range(60)]
Run = Callable[..., RunSummary]
# For a JVM that lives for a minute: compiled once, quickly, by few threads.
_BRIEF = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
BRIEF_JVM = {"spark.driver.extraJavaOptions": _BRIEF, "spark.executor.extraJavaOptions": _BRIEF}
# For one that lives for minutes: only what runs very often is compiled a second time.
_LASTING = "-XX:+UseSerialGC -XX:Tier4InvocationThreshold=15000 -XX:Tier4CompileThreshold=30000"
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
