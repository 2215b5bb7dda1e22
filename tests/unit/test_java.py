"""Finding a Java for Spark, with small scripts in the place of real ones."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lakescore import java

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("java.base", "jdk.incubator.vector")

spec = importlib.util.spec_from_file_location("java_home", ROOT / "scripts/java_home.py")
assert spec and spec.loader
java_home = importlib.util.module_from_spec(spec)
spec.loader.exec_module(java_home)


def fake_java(home: Path, version: str, modules: tuple[str, ...] = MODULES) -> Path:
    """A `java` that says what a real one of that version says."""
    executable = home / "bin/java"
    executable.parent.mkdir(parents=True)
    listing = "".join(f"echo '{module}@{version}'\n" for module in modules)
    executable.write_text(
        "#!/bin/sh\n"
        f"echo '    java.home = {home}' >&2\n"
        f"echo '    java.specification.version = {version}' >&2\n" + listing,
        "utf-8",
    )
    executable.chmod(0o755)
    return executable


@pytest.mark.parametrize(
    ("version", "modules", "number", "unfit"),
    [
        ("17", MODULES, 17, ""),
        ("21", MODULES, 21, ""),
        ("1.8", (), 8, "Java 8, where Spark needs 17 or 21"),
        ("25", MODULES, 25, "Java 25, where Spark needs 17 or 21"),
        ("17", ("java.base",), 17, "Java 17 without the module jdk.incubator.vector"),
    ],
)
def test_probe_says_whether_a_java_fits(
    tmp_path: Path, version: str, modules: tuple[str, ...], number: int, unfit: str
) -> None:
    home = tmp_path / "a folder with spaces"
    assert java.probe(fake_java(home, version, modules)) == java.Java(home, number, unfit)


@pytest.mark.parametrize("script", ["exit 1", "echo 'The operation could not be completed' >&2"])
def test_a_java_that_does_not_run_is_none(tmp_path: Path, script: str) -> None:
    executable = tmp_path / "java"
    executable.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    executable.chmod(0o755)
    assert java.probe(executable) is None
    assert java.probe(tmp_path / "missing") is None


def test_java_home_comes_before_path_and_the_usual_folders(tmp_path: Path) -> None:
    first = fake_java(tmp_path / "first", "17")
    second = fake_java(tmp_path / "second", "17")
    usual = [fake_java(tmp_path / "jvm" / name, "17") for name in ("jdk-17", "jdk-21")]
    environment = {"JAVA_HOME": str(first.parent.parent), "PATH": str(second.parent)}
    found = list(java.executables(environment, [f"{tmp_path}/jvm/*", f"{tmp_path}/nowhere/*"]))
    assert found == [first, second, *usual]


def test_the_same_java_by_two_names_is_asked_once(tmp_path: Path) -> None:
    real = fake_java(tmp_path / "jvm/java-17", "17")
    (tmp_path / "jvm/link").symlink_to(tmp_path / "jvm/java-17")
    environment = {"JAVA_HOME": str(tmp_path / "gone"), "PATH": str(real.parent)}
    assert list(java.executables(environment, [f"{tmp_path}/jvm/*"])) == [real]


def test_the_first_that_fits_is_taken_and_those_before_it_are_named(tmp_path: Path) -> None:
    old, new = fake_java(tmp_path / "old", "11"), fake_java(tmp_path / "new", "21")
    fit, unfit = java.find([old, tmp_path / "missing", new])
    assert fit == java.Java(tmp_path / "new", 21)
    assert unfit == [java.Java(tmp_path / "old", 11, "Java 11, where Spark needs 17 or 21")]


def fetch_into(version: str) -> Callable[[str, str], None]:
    """In the place of the download: a JDK as the archive unpacks it."""

    def fetch(_wanted: str, folder: str) -> None:
        fake_java(Path(folder) / "jdk-17.0.1+1", version)
        executable = Path(folder) / "jdk-17.0.1+1/bin/java"
        own = Path(folder).parent / ".java/jdk-17.0.1+1"
        executable.write_text(executable.read_text().replace(str(executable.parents[1]), str(own)))

    return fetch


def test_a_java_is_fetched_once_where_none_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / ".java"
    old = fake_java(tmp_path / "old", "11")
    expected = java.Java(own / "jdk-17.0.1+1", 17)
    assert java_home.java_home([old], own, fetch_into("17")) == expected
    assert f"fetching Temurin 17 into {own}" in capsys.readouterr().err
    assert [path.name for path in sorted(tmp_path.iterdir())] == [".java", "old"]

    def again(_version: str, _folder: str) -> None:
        raise AssertionError("fetched twice")

    assert java_home.java_home([old], own, again) == expected


def test_a_failed_fetch_is_one_line_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(_version: str, _folder: str) -> None:
        raise OSError("[Errno -3]\nTemporary failure in name resolution")

    assert java_home.java_home([], tmp_path / ".java", fetch) is None
    assert capsys.readouterr().err.splitlines()[1:] == [
        "Java could not be fetched ([Errno -3] Temporary failure in name resolution): "
        "install a JDK 17 or 21 and set JAVA_HOME to its folder, then make again"
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_script_prints_the_home_alone_on_stdout(tmp_path: Path) -> None:
    home = fake_java(tmp_path / "jdk", "21").parent.parent
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/java_home.py", "--own", tmp_path / ".java"],
        env={**os.environ, "JAVA_HOME": str(home), "PYTHONPATH": str(ROOT / "lib")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{home}\n", "")


def test_no_java_at_all_is_none(tmp_path: Path) -> None:
    assert java.find_java({"PATH": str(tmp_path), "HOME": str(tmp_path)}, []) is None
    home = fake_java(tmp_path / "jdk", "17").parent.parent
    assert java.find_java({"JAVA_HOME": str(home)}, []) == java.Java(home, 17)
