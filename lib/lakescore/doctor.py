"""What this machine has of what lakescore needs, and what to do about what it has not.

Each `*_check` is a pure function from what was found to a finding; `checks` goes and looks. torch
is asked in a process of its own, so that a broken build is a finding and not the end of this one.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

from lakescore import java
from lakescore.config import TaskName
from lakescore.errors import LakescoreError

Version = tuple[int, ...]
_DEVICES = "import json; from lakescore.device import device_report as r; print(json.dumps(r()))"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding: what was looked at, how it stands, what was found, and the remedy if any."""

    name: str
    status: Literal["ok", "warn", "fail"] = "ok"
    found: str
    remedy: str = ""


def parse(text: str) -> Version:
    """The leading numbers of a version: 2.9.0+cu128 is (2, 9, 0)."""
    return tuple(int(part) for part in re.split(r"[^\d.]", text)[0].split(".") if part)


def python_check(found: Version) -> Check:
    """Python 3.11 and 3.12 are what lakescore is tested with."""
    text = ".".join(map(str, found))
    if found[:2] in ((3, 11), (3, 12)):
        return Check(name="Python", found=text)
    remedy = "lakescore is tested with Python 3.11 and 3.12: make an environment with one of them"
    return Check(name="Python", status="warn", found=text, remedy=remedy)


def java_check(fit: java.Java | None, unfit: Sequence[java.Java], *, wanted: bool) -> Check:
    """A Java for Spark, unless Spark itself is not here to want one."""
    if fit:
        return Check(name="Java", found=f"{fit.version} in {fit.home}")
    found = "; ".join(f"{one.home}: {one.unfit}" for one in unfit) or "none"
    return Check(name="Java", status="fail" if wanted else "warn", found=found, remedy=java.REMEDY)


def delta_misfit(spark: Version, delta: Version) -> str:
    """Why these two do not work together, with the remedy; "" if they do.

    Seen to work, with writes, MERGE and change feed: 3.5.9 with 3.3.2, 4.0.1 with 4.0.1, 4.1.1
    with 4.1.0, 4.2.0 and 4.3.1. From pyspark 4.1.2 on a plain write passes, and then DeltaTable
    "does not exist in the JVM".
    """
    if spark[:2] >= (4, 2):
        return "no Delta release works with Spark 4.2 yet: install pyspark==4.1.1"
    if spark >= (4, 1, 2):
        return "Delta breaks from pyspark 4.1.2 on: install pyspark==4.1.1 delta-spark==4.3.1"
    if spark[:2] == (4, 1) and not (4, 1) <= delta < (4, 4):
        return "install delta-spark==4.3.1 for Spark 4.1"
    if spark[:2] == (4, 0) and delta[:2] != (4, 0):
        return "install delta-spark==4.0.1 for Spark 4.0"
    if spark[:2] == (3, 5) and not (3, 1) < delta < (4,):
        return "install delta-spark==3.3.2 for Spark 3.5"
    if spark < (3, 5):
        return "install pyspark==4.1.1 delta-spark==4.3.1: Spark before 3.5 is too old"
    return ""


def spark_check(spark: str | None, delta: str | None, runtime: str | None) -> Check:
    """Spark and Delta, which a Databricks Runtime brings in versions that fit each other."""
    if runtime:
        return Check(name="Spark + Delta", found=f"those of Databricks Runtime {runtime}")
    found = f"pyspark {spark or 'missing'}, delta-spark {delta or 'missing'}"
    if not spark or not delta:
        remedy = "pip install 'lakescore[local]', or run on Databricks, which brings its own"
    else:
        remedy = delta_misfit(parse(spark), parse(delta))
    return Check(
        name="Spark + Delta", status="fail" if remedy else "ok", found=found, remedy=remedy
    )


def jars_check(delta: str, jars: Sequence[str]) -> Check:
    """Delta's jar in Ivy's folder, where Spark puts it after the first fetch from Maven."""
    ending = f"-{delta}.jar"
    held = [jar for jar in jars if jar.startswith("io.delta_delta-spark") and jar.endswith(ending)]
    if held:
        return Check(name="Delta's jars", found=held[0])
    return Check(
        name="Delta's jars",
        status="warn",
        found=f"none of {delta} fetched yet",
        remedy="the first session fetches them from Maven, which needs a network and 10 seconds",
    )


def torch_check(found: str | None, devices: Sequence[tuple[str, str]], problem: str) -> list[Check]:
    """The version of torch, and a line for each device with what it can do."""
    if found is None:
        remedy = "pip install 'torch>=2.6'"
        return [Check(name="torch", status="fail", found="missing", remedy=remedy)]
    if parse(found) < (2, 6):
        remedy = "pip install 'torch>=2.6'"
        return [Check(name="torch", status="fail", found=found, remedy=remedy)]
    if problem:
        remedy = "torch does not start here: install it again, or a build that fits this machine"
        return [Check(name="torch", status="fail", found=f"{found}: {problem}", remedy=remedy)]
    return [
        Check(name="torch", found=found),
        *(Check(name=f"device {name}", found=detail) for name, detail in devices),
    ]


def transformers_check(found: str | None, kernels: str | None) -> Check:
    """The range that lakescore supports, and CVE-2026-4372: a config.json that runs code."""
    name, wanted = "transformers", "pip install 'transformers>=4.50,<5.23'"
    if found is None:
        return Check(name=name, status="fail", found="missing", remedy=wanted)
    number = parse(found)
    if not (4, 50) <= number < (5, 23):
        return Check(name=name, status="fail", found=found, remedy=wanted)
    if kernels and (4, 56) <= number < (5, 3):
        remedy = (
            "CVE-2026-4372: with kernels installed, a config.json can run code. lakescore refuses "
            "such files; other code here may not: uninstall kernels, or take transformers>=5.3"
        )
        both = f"{found} with kernels {kernels}"
        return Check(name=name, status="warn", found=both, remedy=remedy)
    return Check(name=name, found=found)


def store_file(tracking_uri: str) -> Path | None:
    """The file of a SQLite store, None for any other store."""
    parsed = urlparse(tracking_uri)
    return Path(parsed.path.removeprefix("/")) if parsed.scheme == "sqlite" else None


def checks(
    *,
    models: Mapping[TaskName, str] | None = None,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> list[Check]:
    """Look at everything; `models` are references by task, as a job's configuration has them."""
    runtime = environment.get("DATABRICKS_RUNTIME_VERSION")
    spark, delta = _version("pyspark"), _version("delta-spark")
    found = [python_check(sys.version_info[:3])]
    if not runtime:
        fit, unfit = java.find(java.executables(environment))
        found.append(java_check(fit, unfit, wanted=spark is not None))
    found.append(spark_check(spark, delta, runtime))
    if delta and not runtime:
        found.append(jars_check(delta, list(_ivy_jars(Path(environment.get("HOME", "/"))))))
    found += torch_check(_version("torch"), *devices())
    found.append(transformers_check(_version("transformers"), _version("kernels")))
    found.append(store_check(tracking_uri, registry_uri))
    for task, reference in (models or {}).items():
        if _no_store_yet(tracking_uri) and reference.startswith(("models:", "runs:")):
            remedy = "register it first: lakescore register, or make demo for the demo's models"
            check = Check(name=f"{task} model", status="warn", found=reference, remedy=remedy)
        else:
            remedy = f"see that {reference} is there and can be read"
            check = ask(f"{task} model", partial(_model, task, reference), remedy)
        found.append(check)
    return found


def store_check(tracking_uri: str | None, registry_uri: str | None = None) -> Check:
    """Where runs go, and whether it answers; a SQLite file is not made by asking for it."""
    if _no_store_yet(tracking_uri):
        return Check(name="MLflow store", found=f"{tracking_uri}, which the first run creates")
    remedy = f"see that mlflow is whole and {tracking_uri or 'its tracking URI'} can be reached"
    return ask("MLflow store", partial(_store, tracking_uri, registry_uri), remedy)


def render(found: Sequence[Check]) -> str:
    """An aligned table; a remedy stands on a line of its own below its finding."""
    width = max(len(check.name) for check in found)
    lines = []
    for check in found:
        lines.append(f"{check.status:<4}  {check.name:<{width}}  {check.found}")
        if check.remedy:
            lines.append(f"{'':<4}  {'':<{width}}  -> {check.remedy}")
    return "\n".join(lines)


def exit_code(found: Sequence[Check]) -> int:
    """1 if anything failed; a warning alone is no failure."""
    return int(any(check.status == "fail" for check in found))


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _ivy_jars(home: Path) -> Iterator[str]:
    """File names in Ivy's folders: ~/.ivy2.5.2 for Spark 4, ~/.ivy2 before."""
    for folder in (".ivy2.5.2", ".ivy2"):
        for jar in sorted((home / folder / "jars").glob("*.jar")):
            yield jar.name


def devices() -> tuple[list[tuple[str, str]], str]:
    """The devices that torch sees, or the last line of its complaint."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _DEVICES], capture_output=True, text=True, timeout=300
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], str(error)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"ended with status {done.returncode}"]
        return [], last[0][:200]
    answer = (done.stdout.splitlines() or ["[]"])[-1]
    return [(name, detail) for name, detail in json.loads(answer)], ""


def ask(name: str, look: Callable[[], str], remedy: str) -> Check:
    """What `look` finds; a message of lakescore's own names the remedy itself."""
    try:
        return Check(name=name, found=look())
    except LakescoreError as error:
        return Check(name=name, status="fail", found=str(error))
    except Exception as error:  # what a broken installation raises has no common type
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        found = f"{type(error).__name__}: {reason}"
        return Check(name=name, status="fail", found=found, remedy=remedy)


def _no_store_yet(tracking_uri: str | None) -> bool:
    file = store_file(tracking_uri) if tracking_uri else None
    return file is not None and not file.exists()


def _store(tracking_uri: str | None, registry_uri: str | None) -> str:
    from lakescore import tracking

    tracking.configure(tracking_uri, None, registry_uri=registry_uri)
    return tracking.describe_store()


def _model(task: TaskName, reference: str) -> str:
    from lakescore.snapshot import resolve

    snapshot = resolve(reference, task=task)
    return f"{snapshot.version}, {len(snapshot.labels)} labels, sha256 {snapshot.fingerprint[:12]}"
