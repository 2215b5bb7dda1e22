"""The wheel, and the pins of conf/runtimes against the ranges of setup.py."""

import ast
import email
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = sorted((ROOT / "conf/runtimes").glob("*.txt"))

# What each Databricks Runtime ML brings itself: the wheel must be content with it.
BROUGHT = {
    "16.4": "torch 2.6.0, transformers 4.50.2, mlflow-skinny 2.21.3, pandas 1.5.3, pyarrow 15.0.2, "
    "numpy 1.26.4",
    "17.3": "torch 2.7.0, transformers 4.51.3, mlflow-skinny 3.0.1, pandas 2.2.3, pyarrow 19.0.1, "
    "numpy 2.1.3",
    "18": "torch 2.9.0, transformers 4.57.1, mlflow-skinny 3.8.1, pandas 2.2.3, pyarrow 21.0.0, "
    "numpy 2.1.3",
    "19": "torch 2.12.0, transformers 4.57.6, mlflow-skinny 3.12.0, pandas 2.3.3, pyarrow 21.0.0, "
    "numpy 2.3.4",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy so that nothing is left in the project, without a network."""
    project = tmp_path_factory.mktemp("wheel") / "project"
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("lib", "models", "tests", "jobs", "conf", "scripts"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, project / name, ignore=unwanted)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    out = project / "out"
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(project)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    """One of the files of the wheel's .dist-info."""
    (file,) = (entry for entry in wheel.namelist() if entry.endswith(f".dist-info/{name}"))
    return wheel.read(file).decode("utf-8")


def requirements(wheel: zipfile.ZipFile) -> list[Requirement]:
    """What the wheel asks for, extras included."""
    return [
        Requirement(line)
        for line in email.message_from_string(metadata(wheel, "METADATA")).get_all(
            "Requires-Dist", []
        )
    ]


def pins(file: Path) -> dict[str, str]:
    """Distribution to version, from a file that may hold nothing but exact pins."""
    found: dict[str, str] = {}
    for line in file.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert re.fullmatch(r"[A-Za-z0-9._-]+", name), f"{file.name}: not a pin: {line}"
            assert re.fullmatch(r"[0-9][A-Za-z0-9.+]*", version), f"{file.name}: not a pin: {line}"
            assert canonicalize_name(name) not in found, f"{file.name}: twice: {name}"
            found[canonicalize_name(name)] = version
    return found


def test_the_wheel_holds_the_library_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    library = {
        file.relative_to(ROOT / "lib").as_posix()
        for file in (ROOT / "lib/lakescore").rglob("*")
        if file.suffix in (".py", ".j2") or file.name == "py.typed"
    }
    assert held == library


def test_the_library_imports_nothing_that_the_wheel_does_not_ask_for(
    wheel: zipfile.ZipFile,
) -> None:
    asked = {canonicalize_name(one.name) for one in requirements(wheel) if "dev" not in str(one)}
    for one in [*asked]:  # with what those bring always, as transformers its tokenizers
        with suppress(PackageNotFoundError):
            brought = [each for each in requires(one) or () if "extra ==" not in each]
            asked |= {canonicalize_name(Requirement(each).name) for each in brought}
    owners = packages_distributions()
    unasked = set()
    for file in (ROOT / "lib/lakescore").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            named = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                named = [node.module or ""]
            for module in {each.partition(".")[0] for each in named}:
                known = {canonicalize_name(each) for each in owners.get(module, ())}
                if module not in sys.stdlib_module_names | {"lakescore"} and not known & asked:
                    unasked.add(module)
    # Without Delta, as with the pins of 19 ML, what its module belongs to cannot be told.
    assert unasked - {"delta"} == set()


def test_the_wheel_is_small(wheel: zipfile.ZipFile) -> None:
    assert sum(entry.file_size for entry in wheel.infolist()) < 2**20


def test_the_wheel_carries_its_licence_and_its_command(wheel: zipfile.ZipFile) -> None:
    assert "Apache License" in metadata(wheel, "licenses/LICENSE")
    expected = "[console_scripts]\nlakescore = lakescore.cli:main\n"
    assert metadata(wheel, "entry_points.txt") == expected


def test_the_wheel_asks_for_no_spark_and_pins_nothing(wheel: zipfile.ZipFile) -> None:
    always = [one for one in requirements(wheel) if one.marker is None]
    assert {"pyspark", "delta-spark", "mlflow"} & {one.name for one in always} == set()
    pinned = [str(one) for one in requirements(wheel) if "==" in str(one.specifier)]
    assert pinned == []


@pytest.mark.parametrize("runtime", BROUGHT)
def test_the_wheel_pulls_nothing_over_what_a_runtime_brings(
    wheel: zipfile.ZipFile, runtime: str
) -> None:
    brought = dict(pair.split(" ") for pair in BROUGHT[runtime].split(", "))
    always = {one.name: one.specifier for one in requirements(wheel) if one.marker is None}
    assert set(brought) <= set(always)
    replaced = {name: v for name, v in brought.items() if not always[name].contains(v)}
    assert replaced == {}


@pytest.mark.parametrize("file", RUNTIMES, ids=lambda file: file.stem)
def test_every_pin_is_within_the_ranges_of_setup(wheel: zipfile.ZipFile, file: Path) -> None:
    pinned = pins(file)
    asked = {canonicalize_name(one.name): one.specifier for one in requirements(wheel)}
    none_yet = {"delta-spark"} if file.stem == "19-ml" else set()  # no jar for Spark 4.2
    assert set(asked) - set(pinned) == none_yet
    there = asked.keys() - none_yet
    outside = {name: pinned[name] for name in there if not asked[name].contains(pinned[name])}
    assert outside == {}


@pytest.mark.parametrize("runtime", BROUGHT)
def test_the_pins_of_a_runtime_are_what_it_brings(runtime: str) -> None:
    [file] = (each for each in RUNTIMES if each.stem.startswith(f"{runtime}-"))
    pinned = pins(file)
    brought = dict(pair.split(" ") for pair in BROUGHT[runtime].split(", "))
    brought["mlflow"] = brought["mlflow-skinny"]
    assert {name: pinned[name] for name in brought} == brought
