"""Which Java on this machine can run Spark: 17 or 21, with the module that Spark's readers use."""

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import which

VERSIONS = (17, 21)
MODULE = "jdk.incubator.vector"
REMEDY = "install a JDK 17 or 21 and set JAVA_HOME to its folder"
_FOLDERS = (
    "/usr/lib/jvm/*",
    "/usr/java/*",
    "/opt/java/*",
    "/opt/jdk*",
    "/Library/Java/JavaVirtualMachines/*/Contents/Home",
    "/opt/homebrew/opt/openjdk@*/libexec/openjdk.jdk/Contents/Home",
    "/usr/local/opt/openjdk@*/libexec/openjdk.jdk/Contents/Home",
    "~/.sdkman/candidates/java/*",
    "~/.jdks/*",
    "~/.jdk/*",
    ".java/*",  # where the project's make puts its own
    ".java/*/Contents/Home",
)


@dataclass(frozen=True)
class Java:
    """One Java that ran: its home, major version, and why Spark cannot use it ("" if it can)."""

    home: Path
    version: int
    unfit: str = ""


def probe(executable: Path) -> Java | None:
    """Run a `java` and read what it is; None if it does not run or is not a Java."""
    try:
        done = subprocess.run(
            [executable, "-XshowSettings:properties", "--list-modules"],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = done.stdout + done.stderr
    home = re.search(r"^\s*java\.home = (.+)$", said, re.MULTILINE)
    version = re.search(r"^\s*java\.specification\.version = (?:1\.)?(\d+)", said, re.MULTILINE)
    if not home or not version:
        return None
    number, folder = int(version[1]), Path(home[1].strip())
    unfit = ""
    if number not in VERSIONS:
        unfit = f"Java {number}, where Spark needs 17 or 21"
    elif not re.search(rf"^{re.escape(MODULE)}(@|$)", done.stdout, re.MULTILINE):
        unfit = f"Java {number} without the module {MODULE}"
    return Java(folder, number, unfit)


def executables(
    environment: Mapping[str, str], folders: Iterable[str] = _FOLDERS
) -> Iterator[Path]:
    """Every `java` worth asking, preferred ones first; none is run here, none given twice."""
    seen = set()
    for executable in _executables(environment, folders):
        try:
            real = executable.resolve()
            fresh = real not in seen and executable.is_file()
        except OSError:  # a loop of links, or a folder that may not be read
            continue
        seen.add(real)
        if fresh:
            yield executable


def _executables(environment: Mapping[str, str], folders: Iterable[str]) -> Iterator[Path]:
    if environment.get("JAVA_HOME"):
        yield Path(environment["JAVA_HOME"]) / "bin/java"
    if on_path := which("java", path=environment.get("PATH", "")):
        yield Path(on_path)
    for pattern in folders:
        if pattern.startswith("~"):
            pattern = environment.get("HOME", "/") + pattern[1:]
        start = Path(pattern.partition("*")[0]).parent
        try:
            found = sorted(start.glob(str(Path(pattern).relative_to(start)) + "/bin/java"))
        except OSError:
            continue
        yield from found


def find(executables: Iterable[Path]) -> tuple[Java | None, list[Java]]:
    """The first Java that fits, and those asked before it that do not."""
    unfit: list[Java] = []
    for executable in executables:
        java = probe(executable)
        if java is not None and not java.unfit:
            return java, unfit
        if java is not None:
            unfit.append(java)
    return None, unfit


def find_java(
    environment: Mapping[str, str] = os.environ, folders: Iterable[str] = _FOLDERS
) -> Java | None:
    """The Java for Spark on this machine, None if no fitting one is found."""
    return find(executables(environment, folders))[0]
