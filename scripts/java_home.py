"""Print the home of a Java that can run Spark; where there is none, fetch one into a folder.

Stdout has the folder and nothing else, for `export JAVA_HOME=…`. A Temurin 17 comes by the package
install-jdk, from the addresses that it knows.
"""

import argparse
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from lakescore import java

FETCHED = 17


def fetch(version: str, path: str) -> None:
    """Download and unpack a Temurin JDK under `path`."""
    import jdk

    socket.setdefaulttimeout(60)  # install-jdk sets none: a silent firewall would hold it for ever
    jdk.install(version, path=path)


def java_home(
    executables: list[Path], own: Path, fetch: Callable[[str, str], None]
) -> java.Java | None:
    """A fitting Java: one that is there, one fetched into `own` before, or one fetched now."""
    found, unfit = java.find([*executables, *fetched(own)])
    for passed_over in unfit:
        say(f"not used: {passed_over.home}: {passed_over.unfit}")
    if found:
        return found

    say(f"No Java 17 or 21 found: fetching Temurin {FETCHED} into {own} (about 200 MB), once.")
    own.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=own.parent, prefix=f"{own.name}-") as fresh:
            fetch(str(FETCHED), fresh)
            shutil.rmtree(own, ignore_errors=True)
            Path(fresh).rename(own)
            Path(fresh).mkdir()  # for TemporaryDirectory to remove
    except Exception as error:  # install-jdk raises whatever the network and the archive raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        say(f"Java could not be fetched ({reason}): {java.REMEDY}, then make again")
        return None
    found, _ = java.find(fetched(own))
    if not found:
        say(f"The Java fetched into {own} does not run here: {java.REMEDY}, then make again")
    return found


def fetched(own: Path) -> list[Path]:
    """The `java` executables below the project's own folder, on Linux and on macOS."""
    return sorted([*own.glob("*/bin/java"), *own.glob("*/Contents/Home/bin/java")])


def say(line: str) -> None:
    """A line for whoever waits; stdout belongs to the answer."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--own", type=Path, default=Path(".java"), help="where to fetch one to")
    own = parser.parse_args().own.absolute()
    found = java_home(list(java.executables(os.environ)), own, fetch)
    if found:
        print(found.home)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
