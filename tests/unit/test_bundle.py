"""The bundle: what it names is there, and what it passes on is understood."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlparse

import pytest
import regex
import yaml

from lakescore import cli
from lakescore.config import JobConfig
from lakescore.finetune import FinetuneConfig

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT.parent / "shared/databricks/bundle_schema.json"
RESOURCES = sorted((ROOT / "conf/resources").glob("*.yml"))
TARGETS = ("dev", "staging", "prod")


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
    return found


BUNDLE = read(ROOT / "databricks.yml")
MERGED: dict[str, dict[str, Any]] = {}
for file in RESOURCES:
    for kind, resources in read(file)["resources"].items():
        MERGED.setdefault(kind, {}).update(resources)
JOBS = MERGED["jobs"]


def leaves(value: Any) -> Iterator[Any]:
    """Every value that holds no others."""
    if isinstance(value, dict):
        for each in value.values():
            yield from leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from leaves(each)
    else:
        yield value


def tasks(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The tasks of a job, and those within its for-each tasks."""
    for task in job["tasks"]:
        yield task
        if "for_each_task" in task:
            yield task["for_each_task"]["task"]


SPARK_TASKS = [
    pytest.param(name, task, id=f"{name}.{task['task_key']}")
    for name, job in JOBS.items()
    for task in tasks(job)
    if "spark_python_task" in task
]


def test_every_file_is_a_resource_file_of_the_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    if not SCHEMA.is_file():
        pytest.skip(f"{SCHEMA} is not there: what `databricks bundle schema` prints")

    def pattern(_: Any, wanted: str, value: Any, schema: Any) -> Iterator[Any]:
        # Of JavaScript's kind, as \p{L}, which Python's re has not.
        if isinstance(value, str) and not regex.search(wanted, value):
            yield jsonschema.ValidationError(f"{value!r} is not of the form {wanted}")

    kind = jsonschema.validators.extend(jsonschema.Draft7Validator, {"pattern": pattern})
    validator = kind(json.loads(SCHEMA.read_text("utf-8")))
    for file in (ROOT / "databricks.yml", *RESOURCES):
        wrong = [
            f"{list(each.path)}: {each.message[:300]}" for each in validator.iter_errors(read(file))
        ]
        assert wrong == [], file.name
    merged = BUNDLE | {"resources": MERGED}
    assert [each.message[:300] for each in validator.iter_errors(merged)] == []


def test_every_resource_is_understood_by_databricks_bundles() -> None:
    pytest.importorskip("databricks.bundles", reason="databricks-bundles is not installed")
    from databricks.bundles import (
        dashboards,
        experiments,
        jobs,
        pipelines,
        registered_models,
        schemas,
        volumes,
    )

    kinds: dict[str, Any] = {
        "dashboards": dashboards.Dashboard,
        "experiments": experiments.MlflowExperiment,
        "jobs": jobs.Job,
        "pipelines": pipelines.Pipeline,
        "registered_models": registered_models.RegisteredModel,
        "schemas": schemas.Schema,
        "volumes": volumes.Volume,
    }
    for kind, resources in MERGED.items():
        for name, values in resources.items():
            assert kinds[kind].from_dict(values).as_dict().keys() == values.keys(), name


def test_every_variable_and_resource_that_is_referred_to_is_there() -> None:
    known = {f"var.{name}" for name in BUNDLE["variables"]}
    known |= {"bundle.name", "bundle.target", "workspace.file_path"}
    known |= {"workspace.current_user.userName"}
    for kind, resources in MERGED.items():
        for name, values in resources.items():
            known |= {f"resources.{kind}.{name}.{field}" for field in values}
    said = [BUNDLE, MERGED]
    named = {
        reference
        for text in leaves(said)
        if isinstance(text, str)
        for reference in re.findall(r"\$\{([^}]+)\}", text)
    }
    assert named - known == set()
    assert {f"var.{name}" for name in BUNDLE["variables"]} - named == set()
    assert all("default" in each for each in BUNDLE["variables"].values())


def test_every_file_that_is_named_is_there() -> None:
    named = [
        value for value in leaves(MERGED) if isinstance(value, str) and value.startswith("../")
    ]
    found = {value for value in named if (ROOT / "conf/resources" / value).exists()}
    assert set(named) - found == {"../../dist/*.whl"}  # the artifact, built by each deployment
    assert BUNDLE["include"] == ["conf/resources/*.yml"]
    missing = [pattern for pattern in BUNDLE["sync"]["exclude"] if not any(ROOT.glob(pattern))]
    assert missing == []


def test_each_job_knows_its_parameters_tasks_and_clusters() -> None:
    for name, job in JOBS.items():
        keys = [task["task_key"] for task in tasks(job)]
        assert len(set(keys)) == len(keys), name
        needed = {each["task_key"] for task in tasks(job) for each in task.get("depends_on", ())}
        assert needed <= set(keys), name
        clusters = {each["job_cluster_key"] for each in job.get("job_clusters", ())}
        environments = {each["environment_key"] for each in job.get("environments", ())}
        for task in tasks(job):
            if "spark_python_task" in task:
                on = {task.get("job_cluster_key")} <= clusters
                assert on or {task.get("environment_key")} <= environments, (name, task["task_key"])
        used = set(re.findall(r"\{\{job\.parameters\.(\w+)\}\}", json.dumps(job)))
        assert used == {each["name"] for each in job["parameters"]}, name


def started(task: dict[str, Any], values: dict[str, str]) -> list[str]:
    """The arguments that a job file hands to the command line, given a task's parameters."""
    arguments = [
        re.sub(r"\$?\{\{?([\w.]+)\}\}?", lambda found: values.get(found[1], "main"), each)
        for each in task["spark_python_task"]["parameters"]
    ]
    file = ROOT / "conf/resources" / task["spark_python_task"]["python_file"]
    handed: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", [str(file), *arguments])
        patched.setattr(cli, "main", handed.append)
        runpy.run_path(str(file), run_name="__main__")
    return handed[0]


@pytest.mark.parametrize(("job", "task"), SPARK_TASKS)
def test_the_parameters_of_each_task_are_understood(job: str, task: dict[str, Any]) -> None:
    values = {"workspace.file_path": str(ROOT), "var.source_table": "main.a.b"}
    values |= {"input.config": "conf/score.yml", "input.source": "main.a.b", "input.target": "c"}
    for each in JOBS[job]["parameters"]:
        values[f"job.parameters.{each['name']}"] = str(each["default"])
    command, *arguments = started(task, values)
    context = cli.cli.commands[command].make_context(command, arguments)
    given = context.params
    if command == "register":
        # By itself the job leaves both models as they are.
        assert given["model"].startswith("/Volumes/") or given["model"] == "none"
        assert given["registry_uri"] == "databricks-uc"
        return
    model = FinetuneConfig if command == "finetune" else JobConfig
    config: Any = model.load(given["config"], given["overrides"], given.get("defaults", ()))
    if command == "finetune":
        assert config.output.startswith("/Volumes/")
    else:
        assert (config.source.table, config.target.table) == ("main.a.b", "main.main.c")
        assert config.target.checkpoint == "/Volumes/main/main/main/checkpoints"
    if Path(task["spark_python_task"]["python_file"]).stem == "backfill":
        assert config.source.changes == "snapshot"


def test_each_build_of_the_wheel_has_a_version_of_its_own() -> None:
    assert "LAKESCORE_BUILD=$(date +%s) " in BUNDLE["artifacts"]["lakescore"]["build"]
    command = [sys.executable, "setup.py", "--version"]
    one, built = (
        subprocess.check_output(command, cwd=ROOT, env=os.environ | env, text=True).split()[-1]
        for env in ({}, {"LAKESCORE_BUILD": "1764"})
    )
    assert built == f"{one}+1764"


def test_the_tables_of_the_jobs_are_json_of_files_that_are_there() -> None:
    tables = json.loads(BUNDLE["variables"]["tables"]["default"])
    for each in tables:
        assert each.keys() == {"config", "source", "target"}
        assert (ROOT / each["config"]).is_file()


def test_where_no_runtime_brings_them_torch_and_transformers_are_those_of_the_default() -> None:
    pinned = (ROOT / "conf/runtimes/18-lts-ml.txt").read_text("utf-8").split()
    wanted = [pin for pin in pinned if pin.startswith(("torch==", "transformers=="))]
    [task] = (task for task in tasks(JOBS["score_cpu"]) if "libraries" in task)
    pinned = [each["pypi"]["package"] for each in task["libraries"] if "pypi" in each]
    assert sorted(pinned) == wanted
    for pipeline in MERGED["pipelines"].values():
        assert pipeline["environment"]["dependencies"][:-1] == wanted


def test_no_file_names_a_workspace() -> None:
    for file in (ROOT / "databricks.yml", *RESOURCES):
        said = file.read_text("utf-8")
        assert re.findall(r"https?://|^\s*(?:host|profile):", said, re.MULTILINE) == []


def test_what_the_targets_promise() -> None:
    dev, staging, prod = (BUNDLE["targets"][name] for name in TARGETS)
    assert (dev["mode"], prod["mode"]) == ("development", "production")
    for target in (staging, prod):
        assert target["workspace"]["root_path"]
        assert target["run_as"] == {"service_principal_name": "${var.service_principal}"}
    for kind in ("schemas", "volumes", "registered_models"):
        assert prod["resources"][kind].keys() == MERGED[kind].keys()
        assert all(
            each["lifecycle"]["prevent_destroy"] for each in prod["resources"][kind].values()
        )
    permitted = [*JOBS.values(), *MERGED["pipelines"].values(), *MERGED["dashboards"].values()]
    assert all(each["permissions"] for each in permitted)
    assert all(job["max_concurrent_runs"] == 1 and job["queue"]["enabled"] for job in JOBS.values())
    score = JOBS["score"]
    assert prod["presets"] == {"trigger_pause_status": "${var.pause_status}"}
    assert score.keys() >= {"schedule", "timeout_seconds", "health", "email_notifications"}
    [inner] = (task for task in tasks(score) if "spark_python_task" in task)
    assert inner["max_retries"] == 2


class Workspace(BaseHTTPRequestHandler):
    """A stand-in for a workspace: who asks, and which folders there are."""

    made: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        asked = urlparse(self.path)
        [folder] = parse_qs(asked.query).get("path", [""])
        if asked.path.endswith("/scim/v2/Me"):
            self._reply(200, {"id": "1", "userName": "tester@example.com", "active": True})
        elif folder in self.made:
            self._reply(200, {"object_type": "DIRECTORY", "object_id": 1, "path": folder})
        else:
            self._reply(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": self.path})

    def do_POST(self) -> None:
        said = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        if self.path.endswith("/workspace/mkdirs"):
            self.made.add(said["path"])
        self._reply(200, {})

    def _reply(self, status: int, body: Any) -> None:
        said = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def workspace() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Workspace) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("target", TARGETS)
def test_the_command_line_of_databricks_accepts_it(
    target: str, workspace: str, tmp_path: Path
) -> None:
    databricks = shutil.which("databricks")
    if databricks is None:
        pytest.skip("no `databricks` on the PATH: its command line is in no package registry")
    # Without what is set here, in the environment or in `.databricks`, for somebody's workspace.
    shutil.copy(ROOT / "databricks.yml", tmp_path)
    for folder in ("conf", "jobs", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for left_out in BUNDLE["sync"]["exclude"]:
        file = tmp_path / left_out.replace("**", "file")
        file.parent.mkdir()
        file.touch()
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DATABRICKS_", "BUNDLE_VAR_"))
    }
    # The command line has made a profile its default; what the docs export is to hide it.
    default = "[other]\nhost = http://127.0.0.1:1\n[__settings__]\ndefault_profile = other\n"
    (tmp_path / ".databrickscfg").write_text(default)
    docs = (ROOT / "docs/databricks.md").read_text("utf-8")
    [hidden] = re.findall("^export DATABRICKS_CONFIG_FILE=(.*)$", docs, re.MULTILINE)
    own = {"HOST": workspace, "TOKEN": "none", "AUTH_TYPE": "pat", "CONFIG_FILE": hidden}
    done = subprocess.run(
        [databricks, "bundle", "validate", "--strict", "--target", target],
        cwd=tmp_path,
        env=inherited
        | {"HOME": str(tmp_path)}
        | {f"DATABRICKS_{name}": value for name, value in own.items()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Validation OK!" in done.stdout
