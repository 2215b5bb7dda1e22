import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from lakescore import tracking
from lakescore.errors import ModelError, SetupError
from lakescore.snapshot import Snapshot, resolve
from tests.conftest import ROOT
from tests.hub_server import HubServer
from tests.tiny_models import ENTITY_LABELS, SENTIMENT_LABELS, tiny_model

mlflow = pytest.importorskip("mlflow")
pytest.importorskip("sqlalchemy", reason="MLflow's local store needs the extra `local`")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking store of this module's own, made once: MLflow takes seconds to make its tables."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    before = Path.cwd()
    os.chdir(folder)  # MLflow puts artifacts beside the process
    tracking.configure(uri, "lakescore")
    os.chdir(before)
    yield uri
    mlflow.set_tracking_uri(None)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow leaves a folder where the process is."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("model")
    return resolve(str(tiny_model(folder / "ner")), task="entities", cache=folder / "cache")


@pytest.fixture(scope="module")
def registered(store: str, snapshot: Snapshot) -> tracking.RegisteredVersion:
    return tracking.register(snapshot, name="ner", alias="champion")


def test_processes_that_make_a_store_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    program = (
        "from lakescore import tracking; "
        f"tracking.configure('sqlite:///{tmp_path}/new/store.db', 'first')"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "lib")}
    at_once = [subprocess.Popen([sys.executable, "-c", program], env=env) for _ in range(3)]
    assert [process.wait() for process in at_once] == [0, 0, 0]


def test_an_experiment_is_found_by_its_path_without_workspace(store: str) -> None:
    # As Databricks keeps it, which does not find one by the path that its folders have.
    for _ in range(2):
        tracking.configure(store, "/Workspace/Shared/runs")
    assert mlflow.get_experiment_by_name("/Shared/runs") is not None
    assert mlflow.get_experiment_by_name("/Workspace/Shared/runs") is None
    tracking.configure(store, "lakescore")


def refusal(reference: str, cache: Path, task: str = "entities") -> str:
    with pytest.raises(ModelError) as caught:
        resolve(reference, task=task, cache=cache)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(f"{reference}: ")
    assert "\n" not in message
    return message.removeprefix(f"{reference}: ")


class TestRegister:
    @pytest.mark.parametrize("alias", ["", "v1", "Latest", "a b", "a@b", "x" * 256])
    def test_refuses_an_alias_before_anything_is_logged(
        self, store: str, snapshot: Snapshot, alias: str
    ) -> None:
        with pytest.raises(ModelError, match="cannot be an alias"):
            tracking.register(snapshot, name="unnamed", alias=alias)
        assert not mlflow.MlflowClient().search_model_versions("name='unnamed'")

    def test_makes_a_version_that_resolves_to_the_same_fingerprint(
        self, registered: tracking.RegisteredVersion, snapshot: Snapshot, cache: Path
    ) -> None:
        assert registered == tracking.RegisteredVersion("ner", "1", True)
        assert registered.uri == "models:/ner/1"
        for reference in ("models:/ner@champion", "models:/ner/1"):
            found = resolve(reference, task="entities", cache=cache)
            assert found == Snapshot(
                reference=reference,
                version="models:/ner/1",
                folder=cache / snapshot.fingerprint,
                fingerprint=snapshot.fingerprint,
                tokenizer_fingerprint=snapshot.tokenizer_fingerprint,
                labels=ENTITY_LABELS,
                architecture="token-classification",
                problem_type=None,
            )

    def test_tags_the_version(
        self, registered: tracking.RegisteredVersion, snapshot: Snapshot
    ) -> None:
        version = mlflow.MlflowClient().get_model_version("ner", "1")
        assert version.tags == {
            "lakescore_fingerprint": snapshot.fingerprint,
            "lakescore_labels": json.dumps(ENTITY_LABELS),
            "lakescore_source": f"sha256:{snapshot.fingerprint}",
            "lakescore_architecture": "token-classification",
        }

    def test_logs_signature_example_and_pinned_requirements(
        self, registered: tracking.RegisteredVersion, tmp_path: Path
    ) -> None:
        folder = Path(mlflow.artifacts.download_artifacts(registered.uri, dst_path=str(tmp_path)))
        logged = mlflow.models.Model.load(str(folder))
        assert logged.signature.to_dict() == {
            "inputs": '[{"type": "string", "required": true}]',
            "outputs": '[{"type": "string", "required": true}]',
            "params": None,
        }
        assert json.loads((folder / "input_example.json").read_text("utf-8")) == (
            "Ada Lovelace wrote to the Royal Society in London, and was pleased."
        )
        names = ("mlflow", "transformers", "tokenizers", "safetensors", "torch")
        pins = [f"{name}=={metadata.version(name).split('+')[0]}" for name in names]
        assert sorted((folder / "requirements.txt").read_text("utf-8").split()) == sorted(pins)
        assert not (folder / "model" / "snapshot.json").exists()

    def test_refuses_a_name_of_another_task(
        self, registered: tracking.RegisteredVersion, tmp_path: Path, cache: Path
    ) -> None:
        folder = tiny_model(tmp_path / "mood", head="sequence-classification")
        other = resolve(str(folder), task="sentiment", cache=cache)
        with pytest.raises(ModelError) as refused:
            tracking.register(other, name="ner", alias="champion")
        assert str(refused.value) == (
            f"models:/ner/1 is for token-classification, and {other.version} for "
            "sequence-classification: a job that follows the name would stop; give another name"
        )
        assert tracking.find_model("models:/ner@champion").version == "models:/ner/1"

    def test_of_the_same_fingerprint_finds_the_version_that_is_there(
        self, registered: tracking.RegisteredVersion, snapshot: Snapshot
    ) -> None:
        again = tracking.register(snapshot, name="ner", alias="candidate")
        assert again == tracking.RegisteredVersion("ner", "1", False)
        assert tracking.find_model("models:/ner@candidate").version == "models:/ner/1"

    def test_of_another_model_makes_the_next_version_and_moves_the_alias(
        self, store: str, snapshot: Snapshot, tmp_path: Path, cache: Path
    ) -> None:
        other = resolve(str(tiny_model(tmp_path / "other", seed=1)), task="entities", cache=cache)
        first = tracking.register(snapshot, name="moving", alias="champion")
        second = tracking.register(other, name="moving", alias="champion")
        assert (first.version, second.version) == ("1", "2")
        champion = resolve("models:/moving@champion", task="entities", cache=cache)
        assert (champion.version, champion.fingerprint) == (second.uri, other.fingerprint)
        assert tracking.register(snapshot, name="moving", alias="champion").version == "1"

    def test_of_a_sentiment_model_round_trips_too(
        self, store: str, tmp_path: Path, cache: Path
    ) -> None:
        folder = tiny_model(
            tmp_path / "model",
            tokenizer="bpe",
            head="sequence-classification",
            problem_type="single_label_classification",
        )
        local = resolve(str(folder), task="sentiment", cache=tmp_path / "local")
        version = tracking.register(local, name="mood")
        found = resolve(version.uri, task="sentiment", cache=cache)
        assert (found.fingerprint, found.labels) == (local.fingerprint, SENTIMENT_LABELS)

    @pytest.mark.parametrize("name", ["", "a/b", "a@b", "a'b"])
    def test_with_a_name_that_is_none_is_refused(self, name: str, snapshot: Snapshot) -> None:
        with pytest.raises(ModelError) as caught:
            tracking.register(snapshot, name=name)
        assert str(caught.value) == (
            f"{name!r} cannot name a registered model; take letters, digits, - and _ (in Unity "
            "Catalog catalog.schema.model)"
        )

    def test_says_nothing_on_the_terminal_and_asks_no_hub(
        self, snapshot: Snapshot, tmp_path: Path
    ) -> None:
        script = (
            "import sys; from pathlib import Path\n"
            "from lakescore import tracking\n"
            "from lakescore.snapshot import open_snapshot, resolve\n"
            "tracking.configure('sqlite:///mlflow.db', 'lakescore')\n"
            "snapshot = open_snapshot(Path(sys.argv[1]))\n"
            "tracking.register(snapshot, name='ner', alias='champion')\n"
            "resolve('models:/ner@champion', task='entities', cache=Path('cache'))\n"
            "with tracking.start_run(name='r', params={'a': 1}, tags={}) as run:\n"
            "    run.log_metrics({'rows': 1.0}, step=0)\n"
            "    run.log_source('a.b.c', 3)\n"
            "    run.log_file(Path('mlflow.db'))\n"
        )
        path = os.pathsep.join(folder for folder in sys.path if folder)
        with HubServer() as hub:
            done = subprocess.run(
                [sys.executable, "-c", script, str(snapshot.folder)],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": path, "HF_ENDPOINT": hub.url},
                capture_output=True,
                text=True,
                check=False,
            )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert hub.requests == []


class TestModelsOfMlflow:
    def test_a_pipeline_logged_by_others_is_read(
        self, store: str, tmp_path: Path, cache: Path
    ) -> None:
        from transformers import pipeline

        folder = tiny_model(tmp_path / "model")
        called = {"artifact_path" if mlflow.__version__.startswith("2.") else "name": "ner"}
        with mlflow.start_run() as run:
            mlflow.transformers.log_model(
                pipeline("token-classification", str(folder), device="cpu"),
                **called,
                input_example="Ada",
                pip_requirements=["transformers"],
            )
        uri = f"runs:/{run.info.run_id}/ner"
        found = resolve(uri, task="entities", cache=cache)
        local = resolve(str(folder), task="entities", cache=cache)
        assert (found.version, found.labels) == (uri, ENTITY_LABELS)
        assert json.loads((found.folder / "tokenizer.json").read_text("utf-8")) == json.loads(
            (local.folder / "tokenizer.json").read_text("utf-8")
        )

    def test_a_file_changed_in_the_registry_is_refused(
        self, store: str, tmp_path: Path, cache: Path
    ) -> None:
        local = resolve(str(tiny_model(tmp_path / "m", seed=5)), task="entities", cache=cache)
        version = tracking.register(local, name="tampered")
        folder = Path(mlflow.artifacts.download_artifacts(version.uri))
        config = folder / "model" / "config.json"
        config.chmod(0o644)
        config.write_text(config.read_text("utf-8") + " ", "utf-8")
        message = refusal(version.uri, tmp_path / "elsewhere")
        assert message.startswith("its files have the fingerprint ")
        assert message.endswith(
            f" and its version's tag says {local.fingerprint[:12]}: they were changed since; "
            "register it again"
        )

    def test_what_is_not_there_is_named(self, store: str, cache: Path) -> None:
        registry = f"(registry {store}); check the name, or register the model with `lakescore"
        for uri in ("models:/none@champion", "models:/none/3", f"runs:/{'0' * 32}/model"):
            message = refusal(uri, cache)
            assert message.startswith(("MlflowException: ", "OSError: "))
            assert registry in message

    @pytest.mark.parametrize(
        "uri",
        ["models:/ner", "models:/ner/latest", "models:/ner/Production", "models:ner@x", "runs:/1"],
    )
    def test_what_is_not_pinned_is_refused(self, uri: str, cache: Path) -> None:
        assert refusal(uri, cache) == (
            "not a pinned model; write models:/name@alias, models:/name/3 or runs:/run_id/path"
        )

    def test_of_another_flavor_and_without_weights_are_refused(
        self, store: str, tmp_path: Path, cache: Path
    ) -> None:
        cases = {
            "flavors:\n  sklearn: {}\n": "was logged with sklearn, not with MLflow's transformers "
            "flavor; register it with `lakescore register`",
            "flavors:\n  transformers:\n    source_model_name: a/b\n"
            "    source_model_revision: c1\n": "was logged without its weights, as a name on the "
            "Hub; register a/b@c1 with `lakescore register`",
            "flavors:\n  transformers:\n    model_binary: ../..\n": "was logged without its "
            "weights, as a name on the Hub; register org/name@<commit> with `lakescore register`",
            "a: [": "holds no MLflow model (no valid MLmodel file there)",
        }
        for number, (content, message) in enumerate(cases.items()):
            (tmp_path / "MLmodel").write_text(content, "utf-8")
            with mlflow.start_run() as run:
                mlflow.log_artifact(str(tmp_path / "MLmodel"), f"model{number}")
            assert refusal(f"runs:/{run.info.run_id}/model{number}", cache) == message


class TestRun:
    def test_records_parameters_metrics_files_and_source(self, store: str, tmp_path: Path) -> None:
        from matplotlib.figure import Figure

        (tmp_path / "report.html").write_text("<p>", "utf-8")
        with tracking.start_run(name="score", params={"rows": 3}, tags={"team": "nlp"}) as run:
            run.log_metrics({"rows": 1, "share: très+positif": 0.5}, step=0)
            run.log_metrics({"rows": 2, "loss": float("nan")}, step=1)
            run.log_params({"a/b": None})
            run.log_source("main.nlp.messages", 7)
            run.log_source("demo/messages", None, name="demo")
            run.log_figure(Figure(), "plots/labels.png")
            run.log_file(tmp_path / "report.html", "report")
        client = mlflow.MlflowClient()
        figures = tracking.run_figures(run.id)
        assert figures is not None
        assert (figures.name, figures.status) == ("score", "FINISHED")
        assert figures.params == {"rows": "3", "a/b": "None"}
        assert figures.metrics == {"rows": 2.0, "share_ très_positif": 0.5}
        assert figures.started is not None
        assert figures.ended is not None
        assert figures.started <= figures.ended
        assert client.get_run(run.id).data.tags["team"] == "nlp"
        inputs = client.get_run(run.id).inputs.dataset_inputs
        assert [(each.dataset.name, each.dataset.source_type) for each in inputs] == [
            ("source", "delta_table"),
            ("demo", "delta_table"),
        ]
        sources = [json.loads(each.dataset.source) for each in inputs]
        assert sources[0]["delta_table_name"] == "main.nlp.messages"
        assert sources[0]["delta_table_version"] == 7
        assert sources[1] == {"path": "demo/messages"}
        assert [(each.dataset.schema, each.dataset.profile) for each in inputs] == [
            (None, None),
            (None, None),
        ]
        files = {entry.path for entry in client.list_artifacts(run.id)}
        assert files == {"plots", "report"}

    def test_cuts_long_parameters_and_keeps_them_whole_in_a_file(self, store: str) -> None:
        params = {f"p{number}": number for number in range(150)} | {"long": "x" * 7000}
        with tracking.start_run(name="long", params=params, tags={}) as run:
            pass
        client = mlflow.MlflowClient()
        recorded = client.get_run(run.id).data.params
        assert (len(recorded), recorded["p149"]) == (151, "149")
        assert recorded["long"] == "x" * 499 + "…"
        text = mlflow.artifacts.load_text(f"runs:/{run.id}/params.json")
        assert json.loads(text)["long"] == "x" * 7000

    @pytest.mark.parametrize(
        ("name", "key"),
        [
            ("errors.null_text", "errors.null_text"),
            ("a//b", "a__b"),
            ("../x", "__x"),
            ("/abs", "_abs"),
            (".", "_"),
            ("", "_"),
            ("label 😀", "label _"),
            ("x" * 300, "x" * 250),
        ],
    )
    def test_takes_any_name_for_a_metric(
        self, name: str, key: str, store: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with tracking.start_run(name="names", params={}, tags={}) as run:
            run.log_metrics({name: 1.0}, step=0)
        figures = tracking.run_figures(run.id)
        assert figures is not None
        assert (figures.metrics, caplog.messages) == ({key: 1.0}, [])

    @pytest.mark.parametrize(
        ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
    )
    def test_ends_as_its_body_does(
        self, error: type[BaseException], status: str, store: str
    ) -> None:
        with (
            pytest.raises(error),
            tracking.start_run(name="failing", params={}, tags={}) as run,
        ):
            raise error
        figures = tracking.run_figures(run.id)
        assert figures is not None
        assert figures.status == status

    def test_inside_another_is_its_child(self, store: str) -> None:
        with (
            mlflow.start_run() as parent,
            tracking.start_run(name="child", params={}, tags={}) as run,
        ):
            pass
        child = mlflow.MlflowClient().get_run(run.id)
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id

    def test_goes_on_with_one_warning_when_the_store_is_lost(
        self, store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        database = tmp_path / "mlflow.db"
        shutil.copy(store.removeprefix("sqlite:///"), database)
        tracking.configure(f"sqlite:///{database}", "lakescore")
        written = []
        try:
            with tracking.start_run(name="lost", params={}, tags={}) as run:
                database.write_bytes(b"no database" * 1000)
                for step in range(5):
                    run.log_metrics({"rows": step}, step=step)
                    written.append(step)
                run.log_source("demo/messages", 1)
        finally:
            tracking.configure(store, "lakescore")
        assert written == [0, 1, 2, 3, 4]
        records = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert [record.name for record in records] == ["lakescore.tracking.runs"]
        assert (
            records[0].getMessage().startswith(f"MLflow run {run.id}: could not record metrics (")
        )

    def test_that_cannot_be_read_is_none(
        self, store: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert tracking.run_figures("0" * 32) is None
        assert [record.levelname for record in caplog.records] == ["WARNING"]


class TestConfigure:
    def test_names_a_store_that_cannot_be_reached_and_no_password(
        self, store: str, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        try:
            for uri, shown in (
                (f"sqlite:///{tmp_path}/file/mlflow.db", f"sqlite:///{tmp_path}/file/mlflow.db"),
                ("nosuch://user:hunter2@host/db", "nosuch://…@host/db"),
            ):
                with pytest.raises(SetupError) as caught:
                    tracking.configure(uri, "lakescore")
                message = str(caught.value)
                assert message.startswith(f"MLflow, {shown}: ")
                assert message.endswith("; check the tracking URI and the experiment")
                assert "hunter2" not in message
        finally:
            tracking.configure(store, "lakescore")

    def test_is_described_with_what_is_registered(
        self, registered: tracking.RegisteredVersion, store: str
    ) -> None:
        described = tracking.describe_store()
        start = f"MLflow {mlflow.__version__}, {store}; registered models: "
        assert described.startswith(start)
        assert "ner" in described.removeprefix(start).split(", ")
