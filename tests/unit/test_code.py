"""The code itself: lint and types, the length of files, which module may import what."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "lib/lakescore"
FILES = sorted(LIBRARY.rglob("*.py"))

# A module imports from its own layer or from one above it in this list, and never in a circle.
LAYERS = [
    {
        "_version",
        "batching",
        "config",
        "device",
        "errors",
        "failpoints",
        "java",
        "locks",
        "progress",
        "text",
        "tokens",
    },
    {"distribute", "encoder", "isolation", "scorer", "snapshot", "tasks", "tracking"},
    {"frame", "metrics", "plan", "tables", "udf"},
    {
        "comparison",
        "doctor",
        "evaluation",
        "finetune",
        "job",
        "labelled",
        "microbatch",
        "opening",
        "places",
        "purge",
        "report",
        "rescore",
        "run",
        "session",
        "stream",
        "todo",
    },
    {"cli"},
]
HEAVY = {
    "torch": {"device", "encoder", "finetune"},
    "transformers": {"encoder", "finetune"},
    "mlflow": {"tracking"},
    "pyspark": {
        "cli",
        "comparison",
        "distribute",
        "frame",
        "labelled",
        "metrics",
        "microbatch",
        "opening",
        "rescore",
        "session",
        "stream",
        "tables",
        "todo",
        "udf",
    },
    "delta": {"session"},
}
IN_FUNCTIONS_ONLY = {"torch", "transformers"}


def module_of(file: Path) -> str:
    """The module that a file belongs to; tasks/ counts as one."""
    first = file.relative_to(LIBRARY).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST, *, top: bool = True) -> Iterator[tuple[str, bool]]:
    """Each imported name, and whether it is at the top; imports for types alone are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            yield from ((f"{node.module}.{alias.name}", top) for alias in node.names)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, top=top and not inside)


def own_imports(file: Path) -> set[str]:
    """The modules of lakescore that a file imports."""
    names = (name.split(".") for name, _ in imports(ast.parse(file.read_text("utf-8"))))
    own = {parts[1] for parts in names if parts[0] == "lakescore" and len(parts) > 1}
    return (own & {module_of(other) for other in FILES}) - {module_of(file)}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A tool of the environment, run over the project."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, errors="replace"
    )


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=["check", "format"])
def test_ruff_finds_nothing(arguments: list[str]) -> None:
    done = run("-m", "ruff", *arguments, ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_finds_nothing_in_the_library_and_the_jobs() -> None:
    # Declarative pipelines are in pyspark since 4.1.
    left_out = [] if find_spec("pyspark.pipelines") else ["--exclude", "jobs/pipeline/"]
    done = run("-m", "mypy", "lib", "jobs", *left_out)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_of_the_library_is_over_350_lines() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in FILES}
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def test_each_file_says_first_what_it_is_for() -> None:
    silent = [file.name for file in FILES if not ast.get_docstring(ast.parse(file.read_text()))]
    assert silent == []


def test_every_module_has_a_layer() -> None:
    known = set().union(*LAYERS) | {"__init__", "__main__"}
    assert {module_of(file) for file in FILES} - known == set()


def test_imports_go_one_way() -> None:
    level = {module: number for number, layer in enumerate(LAYERS) for module in layer}
    upward = [
        f"{module_of(file)} -> {other}"
        for file in FILES
        for other in sorted(own_imports(file))
        if level.get(module_of(file), len(LAYERS)) < level.get(other, 0)
    ]
    assert upward == []


def test_imports_go_in_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for file in FILES:
        graph.setdefault(module_of(file), set()).update(own_imports(file))
    while leaves := {module for module, others in graph.items() if not others & graph.keys()}:
        graph = {module: others for module, others in graph.items() if module not in leaves}
    assert graph == {}


def test_heavy_packages_are_imported_only_where_they_belong() -> None:
    misplaced = []
    for file in FILES:
        for name, top in imports(ast.parse(file.read_text("utf-8"))):
            package = name.split(".")[0]
            elsewhere = package in HEAVY and module_of(file) not in HEAVY[package]
            if elsewhere or (top and package in IN_FUNCTIONS_ONLY):
                misplaced.append(f"{file.relative_to(LIBRARY)}: {name}")
    assert misplaced == []


def test_threads_that_need_transformers_at_once_all_get_it() -> None:
    # With transformers before 4.57 an import of their own fails in some of them.
    script = (
        "import sys; sys.path.insert(0, 'lib')\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from threading import Barrier\n"
        "from lakescore.encoder import import_transformers\n"
        "together = Barrier(4)\n"
        "def tokenizers():\n"
        "    together.wait()\n"
        "    return import_transformers().AutoTokenizer\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    found = [pool.submit(tokenizers) for _ in range(4)]\n"
        "assert len({each.result() for each in found}) == 1\n"
    )
    done = run("-c", script)
    assert done.returncode == 0, done.stderr


def test_importing_lakescore_loads_nothing_heavy() -> None:
    done = run("-X", "importtime", "-c", "import sys; sys.path.insert(0, 'lib'); import lakescore")
    assert done.returncode == 0, done.stderr
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "lakescore" in loaded
    assert loaded & HEAVY.keys() == set()


def tracked_files() -> list[Path]:
    """The project's files as git has them; without git, all but what is made by running it."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        inside = listed.returncode == 0
    except OSError:
        inside = False
    if inside:
        return [ROOT / name for name in listed.stdout.split("\0") if name]
    made = re.compile(r"\.|build$|dist$|demo/data$|ml|reports$|spark-warehouse$|__pycache__$")
    return [
        file
        for top in ROOT.iterdir()
        if not made.match(top.name)
        for file in ([top] if top.is_file() else top.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    ]


def test_no_text_file_names_a_folder_of_somebodys_machine() -> None:
    personal = re.compile(rb"/(?:home|Users|root)/[A-Za-z0-9_.-]+")
    found = []
    for file in tracked_files():
        content = file.read_bytes() if file.is_file() and file.stat().st_size < 2**20 else b""
        if b"\0" not in content and file != Path(__file__) and personal.search(content):
            found.append(str(file.relative_to(ROOT)))
    assert found == []
