"""Models in MLflow: an alias pinned to its version, files downloaded, snapshots registered."""

import io
import json
import re
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lakescore.errors import ModelError
from lakescore.tracking.client import cut, load_mlflow, model_errors, quiet

if TYPE_CHECKING:
    from lakescore.snapshot import Snapshot

FINGERPRINT_TAG = "lakescore_fingerprint"  # Unity Catalog takes no dots in a tag's key
_ARCHITECTURE_TAG = "lakescore_architecture"
_PIPELINES = {
    "token-classification": "token-classification",
    "sequence-classification": "text-classification",
}
_INPUT_EXAMPLE = "Ada Lovelace wrote to the Royal Society in London, and was pleased."
_REQUIREMENTS = ("transformers", "tokenizers", "safetensors", "torch")
_NOT_FOUND = "check the name, or register the model with `lakescore register`"
_TAG_CHARACTERS = 256  # Unity Catalog's limit


@dataclass(frozen=True)
class FoundModel:
    """A model in MLflow: its pinned URI and the fingerprint it was registered with, if any."""

    version: str
    fingerprint: str | None


@dataclass(frozen=True)
class ModelFiles:
    """Where a downloaded model's files are; its tokenizer may have a folder of its own."""

    model: Path
    tokenizer: Path | None
    fingerprint: str | None


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in the registry; `created` is False where the same model was there already."""

    name: str
    version: str
    created: bool

    @property
    def uri(self) -> str:
        """The pinned URI, which never means another model."""
        return f"models:/{self.name}/{self.version}"


def find_model(uri: str) -> FoundModel:
    """Pin an MLflow URI: an alias becomes the version that it names now.

    Raises:
        ModelError: If the URI is malformed, or nothing is registered under it.
    """
    if re.fullmatch(r"runs:/\w+/.+", uri) or re.fullmatch(r"models:/m-[0-9a-f]{32}", uri):
        return FoundModel(uri, None)
    match = re.fullmatch(r"models:/(?P<name>[^/@]+)(/(?P<version>\d+)|@(?P<alias>[^/@]+))", uri)
    if match is None:
        raise ModelError(
            f"{uri}: not a pinned model; write models:/name@alias, models:/name/3 or "
            "runs:/run_id/path"
        )
    with model_errors(uri, _NOT_FOUND), quiet():
        client = load_mlflow().MlflowClient()
        name = match["name"]
        if match["alias"]:
            found = client.get_model_version_by_alias(name, match["alias"])
        else:
            found = client.get_model_version(name, match["version"])
        tags = found.tags or {}
    return FoundModel(f"models:/{name}/{found.version}", tags.get(FINGERPRINT_TAG))


def download_model(found: FoundModel, folder: Path) -> ModelFiles:
    """Copy a logged model into `folder`, and say where the transformers flavor put its files.

    Raises:
        ModelError: If it cannot be fetched, or was not logged with its weights by that flavor.
    """
    import yaml

    uri = found.version
    with model_errors(uri, _NOT_FOUND), quiet():
        artifacts = load_mlflow().artifacts
        root = Path(artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    try:
        logged = yaml.safe_load((root / "MLmodel").read_text("utf-8"))
        flavor = logged["flavors"].get("transformers")
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{uri}: holds no MLflow model (no valid MLmodel file there)") from error
    if flavor is None:
        flavors = ", ".join(logged["flavors"])
        raise ModelError(
            f"{uri}: was logged with {flavors}, not with MLflow's transformers flavor; register "
            "it with `lakescore register`"
        )
    # MLflow before 2.4.1 wrote no model_binary.
    model = (root / str(flavor.get("model_binary", "pipeline"))).resolve()
    if not model.is_dir() or not model.is_relative_to(root.resolve()):
        source = flavor.get("source_model_name", "org/name")
        revision = flavor.get("source_model_revision", "<commit>")
        raise ModelError(
            f"{uri}: was logged without its weights, as a name on the Hub; register "
            f"{source}@{revision} with `lakescore register`"
        )
    tokenizer = root / "components" / "tokenizer"
    return ModelFiles(
        model=model,
        tokenizer=tokenizer if tokenizer.is_dir() else None,
        fingerprint=(logged.get("metadata") or {}).get(FINGERPRINT_TAG),
    )


def register(snapshot: "Snapshot", *, name: str, alias: str | None = None) -> RegisteredVersion:
    """Log a snapshot with MLflow's transformers flavor and register it; give it the alias.

    The files are logged as they are, without being loaded. A snapshot that is registered under
    `name` already is found by its fingerprint, and its version returned.

    Raises:
        ModelError: If the name or the alias is not one, the name has models of another
            architecture, or MLflow cannot be reached.
    """
    if not re.fullmatch(r"[^/@:'\"]+", name):
        raise ModelError(
            f"{name!r} cannot name a registered model; take letters, digits, - and _ (in Unity "
            "Catalog catalog.schema.model)"
        )
    if alias is not None and (
        not re.fullmatch(r"[\w-]{1,255}", alias) or re.fullmatch(r"v\d+|latest", alias, re.I)
    ):
        raise ModelError(
            f"{alias!r} cannot be an alias; take letters, digits, - and _, but neither latest nor "
            "v with a number, which MLflow keeps for itself"
        )
    with model_errors(f"models:/{name}", "check name and alias, and the registry"), quiet():
        mlflow = load_mlflow()
        client = mlflow.MlflowClient()
        version = _version_of(client, name, snapshot)
        created = version is None
        if version is None:
            # MLflow prints to the terminal here, not through its loggers.
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                uri = _log_snapshot(mlflow, snapshot, name)
                tags = _version_tags(snapshot)
                version = str(mlflow.register_model(uri, name, tags=tags).version)
        if alias is not None:
            client.set_registered_model_alias(name, alias, version)
    return RegisteredVersion(name, version, created)


def _version_of(client: Any, name: str, snapshot: "Snapshot") -> str | None:
    """Find the newest version with this fingerprint, under a name that is no other task's."""
    versions = client.search_model_versions(f"name='{name}'")
    for listed in sorted(versions, key=lambda version: -int(version.version)):
        # Unity Catalog lists versions without their tags.
        tags = listed.tags or client.get_model_version(name, str(listed.version)).tags or {}
        held = tags.get(_ARCHITECTURE_TAG, snapshot.architecture)
        if held != snapshot.architecture:
            raise ModelError(
                f"models:/{name}/{listed.version} is for {held}, and {snapshot.version} for "
                f"{snapshot.architecture}: a job that follows the name would stop; give another "
                "name"
            )
        if tags.get(FINGERPRINT_TAG) == snapshot.fingerprint and listed.status in ("READY", None):
            return str(listed.version)
    return None


def _log_snapshot(mlflow: Any, snapshot: "Snapshot", name: str) -> str:
    """Log the snapshot's files in a run of their own and return the model's URI."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    pipeline = _PIPELINES[snapshot.architecture]
    outputs = [ColSpec("string", "label"), ColSpec("double", "score")]
    if pipeline == "token-classification":
        outputs = [ColSpec("string")]
    newer = int(mlflow.__version__.split(".")[0]) >= 3
    with (
        tempfile.TemporaryDirectory() as folder,
        mlflow.start_run(run_name=f"register {name}", nested=True),
    ):
        for file in snapshot.files:
            (Path(folder) / file.name).symlink_to(file.resolve())
        # A path makes MLflow copy the files just as they are; a pipeline would be written anew.
        logged = mlflow.transformers.log_model(
            folder,
            **({"name": "model"} if newer else {"artifact_path": "model"}),
            task=pipeline,
            signature=ModelSignature(Schema([ColSpec("string")]), Schema(outputs)),
            input_example=_INPUT_EXAMPLE,
            pip_requirements=_pinned_requirements(),
            metadata={FINGERPRINT_TAG: snapshot.fingerprint},
        )
    return str(logged.model_uri)


def _version_tags(snapshot: "Snapshot") -> dict[str, str]:
    tags = {
        FINGERPRINT_TAG: snapshot.fingerprint,
        "lakescore_labels": json.dumps(snapshot.labels, ensure_ascii=False),
        "lakescore_source": snapshot.version,
        _ARCHITECTURE_TAG: snapshot.architecture,
    }
    return {key: cut(value, _TAG_CHARACTERS) for key, value in tags.items()}


def _pinned_requirements() -> list[str]:
    # Read off, not inferred: to infer them MLflow would load the model in another process.
    # torch's local part (+cu128) names no version that PyPI has.
    return [f"{name}=={metadata.version(name).split('+')[0]}" for name in _REQUIREMENTS]
