"""A model made immutable: its files, revision and fingerprint; unsafe ones are refused.

The cache holds each snapshot once, in a folder named by its fingerprint, whatever reference led
to it. A snapshot is written aside and renamed into place, so that it is there whole or not at
all, and processes that resolve the same model at once do not disturb each other.
"""

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from lakescore.config import TaskName
from lakescore.errors import ModelError
from lakescore.snapshot import checkpoint, hub, weights
from lakescore.snapshot.checkpoint import TOKENIZER_FILES, Checkpoint

MANIFEST = "snapshot.json"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Snapshot:
    """A model that cannot change any more.

    Attributes:
        reference: What the user wrote.
        version: The pinned reference, recorded beside each result: `models:/name/3`,
            `runs:/id/path`, `org/name@<commit>`, or `sha256:<fingerprint>` for a folder.
        folder: The allowed files, read-only, and the manifest snapshot.json.
        fingerprint: SHA-256 over the sorted pairs of file name and file's SHA-256.
        tokenizer_fingerprint: The same over the tokenizer's files and its class; models for which
            it is equal can share one tokenisation.
        labels: id2label, in id order.
        architecture: "token-classification" or "sequence-classification".
        problem_type: As config.json has it.
    """

    reference: str
    version: str
    folder: Path
    fingerprint: str
    tokenizer_fingerprint: str
    labels: tuple[str, ...]
    architecture: str
    problem_type: str | None

    @property
    def files(self) -> list[Path]:
        """The model's own files, without the manifest."""
        return [path for path in sorted(self.folder.iterdir()) if path.name != MANIFEST]


@dataclass(frozen=True)
class _Source:
    """Where files come from: the names on offer, and each as a path once it is asked for."""

    names: frozenset[str]
    path: Callable[[str], Path]


def default_cache() -> Path:
    """Return $LAKESCORE_CACHE, or the folder in the user's own cache."""
    return Path(os.environ.get("LAKESCORE_CACHE") or "~/.cache/lakescore/snapshots").expanduser()


def resolve(reference: str, *, task: TaskName | None, cache: Path | None = None) -> Snapshot:
    """Make the model that `reference` names a snapshot; only the driver does this.

    Args:
        reference: A folder, `org/name@revision` on the Hub, or an MLflow URI (`models:/name@alias`,
            `models:/name/3`, `runs:/id/path`).
        task: The task that the model must fit; None for one of either architecture.
        cache: Where snapshots are kept; by default `default_cache()`.

    Raises:
        ModelError: If there is no such model, or it is unsafe, damaged or does not fit the task.
    """
    cache = (cache or default_cache()).absolute()
    if reference.startswith(("models:", "runs:")):
        return _resolve_mlflow(reference, task, cache)
    folder = Path(reference).expanduser()
    if reference and folder.is_dir():
        return _store(_folder_source(folder, reference), reference, None, task, cache)
    named = hub.split_reference(reference)
    if named is None:
        raise ModelError(_not_a_reference(reference, folder))
    return _resolve_hub(reference, *named, task, cache)


def open_snapshot(
    folder: Path,
    *,
    task: TaskName | None = None,
    reference: str | None = None,
    version: str | None = None,
) -> Snapshot:
    """Open a snapshot that is there already; its files are hashed again.

    Raises:
        ModelError: If a file was changed, removed or added since the fingerprint was taken.
    """
    reference = reference or str(folder)
    remedy = f"delete {folder} and resolve the model again"
    if not (folder / MANIFEST).is_file():
        raise ModelError(f"{reference}: has no {MANIFEST}; it is not a snapshot: resolve it")
    manifest = checkpoint.read_json(folder / MANIFEST, reference)
    try:
        recorded: dict[str, str] = dict(manifest["files"])
        fingerprint = str(manifest["fingerprint"])
        whole = fingerprint_of(recorded) == fingerprint
    except (TypeError, ValueError, KeyError):
        whole = False
    if not whole:
        raise ModelError(f"{reference}: {MANIFEST} was changed; {remedy}")
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    since = f"since its fingerprint {fingerprint[:12]} was taken"
    if odd := sorted(present.symmetric_difference(recorded)):
        what = "added" if odd[0] in present else "removed"
        raise ModelError(f"{reference}: {odd[0]} was {what} {since}; {remedy}")
    for name, digest in recorded.items():
        if _hash_file(folder / name) != digest:
            raise ModelError(f"{reference}: {name} was changed {since}; {remedy}")
    found = checkpoint.check_small_files(folder, task=task, reference=reference)
    return _snapshot(folder, recorded, found, reference, version)


def fingerprint_of(digests: Mapping[str, str], *, family: str = "") -> str:
    """Return the SHA-256 over sorted (name, SHA-256) pairs, and the tokenizer's class if given."""
    pairs = "".join(f"{name}\0{digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256((family + pairs).encode()).hexdigest()


def _resolve_mlflow(reference: str, task: TaskName | None, cache: Path) -> Snapshot:
    from lakescore import tracking

    found = tracking.find_model(reference)
    expected = found.fingerprint
    if expected and re.fullmatch(r"[0-9a-f]{64}", expected) and (cache / expected).is_dir():
        return open_snapshot(
            cache / expected, task=task, reference=reference, version=found.version
        )
    _make_cache(cache, reference)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=cache) as folder:
        files = tracking.download_model(found, Path(folder))
        source = _mlflow_source(files.model, files.tokenizer, reference)
        expected = expected or files.fingerprint
        return _store(source, reference, found.version, task, cache, expected=expected)


def _resolve_hub(
    reference: str, name: str, revision: str, task: TaskName | None, cache: Path
) -> Snapshot:
    """Resolve by the Hub; a commit that was resolved before asks nobody."""
    model = None
    commit = revision
    if not hub.is_commit(revision):
        model = hub.find_model(reference, name, revision)
        commit = model.commit
    version = f"{name}@{commit}"
    pointer = cache / "refs" / quote(version, safe="")
    if pointer.is_file():
        known = cache / pointer.read_text("ascii").strip()
        if known.parent == cache and known.is_dir():
            return open_snapshot(known, task=task, reference=reference, version=version)
    model = model or hub.find_model(reference, name, revision)
    snapshot = _store(_Source(model.names, model.path), reference, version, task, cache)
    pointer.parent.mkdir(exist_ok=True)
    _write_aside(pointer, snapshot.fingerprint)
    return snapshot


def _folder_source(folder: Path, reference: str) -> _Source:
    root = folder.resolve()
    # The Hub's own cache keeps the files of snapshots/<commit>/ as links to ../../blobs.
    trusted = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root

    def path(name: str) -> Path:
        file = (root / name).resolve()
        if not file.is_relative_to(root) and not file.is_relative_to(trusted):
            raise ModelError(
                f"{reference}: {name} is a link that leads out of the folder; copy the file there"
            )
        return file

    return _Source(frozenset(file.name for file in root.iterdir() if file.is_file()), path)


def _mlflow_source(model: Path, tokenizer: Path | None, reference: str) -> _Source:
    """Read MLflow's two folders as one; the tokenizer beside the weights is the original.

    MLflow writes the one in components/ anew, with other bytes.
    """
    beside = _folder_source(model, reference)
    if tokenizer is None or checkpoint.has_fast_tokenizer_in(model, reference):
        return beside
    own = _folder_source(tokenizer, reference)
    names = (beside.names - TOKENIZER_FILES) | (own.names & TOKENIZER_FILES)
    return _Source(
        frozenset(names), lambda name: (own if name in TOKENIZER_FILES else beside).path(name)
    )


def _store(
    source: _Source,
    reference: str,
    version: str | None,
    task: TaskName | None,
    cache: Path,
    *,
    expected: str | None = None,
) -> Snapshot:
    """Copy the allowed files, check them, and put them into the cache under their fingerprint."""
    _make_cache(cache, reference)
    try:
        with tempfile.TemporaryDirectory(prefix=".staging-", dir=cache) as staging:
            folder = Path(staging) / "files"
            folder.mkdir()
            digests = {
                name: _copy(source.path(name), folder / name)
                for name in checkpoint.small_files(source.names, reference)
            }
            found = checkpoint.check_small_files(folder, task=task, reference=reference)
            wanted = checkpoint.weight_files(folder, source.names, reference)
            for name in wanted:
                digests[name] = _copy(source.path(name), folder / name)
            weights.check_weights(folder, wanted, len(found.labels), reference)
            fingerprint = fingerprint_of(digests)
            if expected not in (None, fingerprint):
                raise ModelError(
                    f"{reference}: its files have the fingerprint {fingerprint[:12]} and its "
                    f"version's tag says {expected[:12] if expected else ''}: they were changed "
                    "since; register it again"
                )
            if not (cache / fingerprint).is_dir():  # else it was tried before
                from lakescore.snapshot.trial import check_runs  # and with it torch

                check_runs(folder, len(found.labels), reference)
            manifest = {"fingerprint": fingerprint, "files": digests}
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), "utf-8")
            for file in folder.iterdir():
                file.chmod(0o444)
            try:
                folder.rename(cache / fingerprint)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                return open_snapshot(
                    cache / fingerprint, task=task, reference=reference, version=version
                )
    except OSError as error:
        raise ModelError(
            f"{reference}: cannot copy the model to {cache} ({error.strerror}: {error.filename}); "
            "mend that, or set LAKESCORE_CACHE to a folder with room"
        ) from error
    return _snapshot(cache / fingerprint, digests, found, reference, version)


def _snapshot(
    folder: Path,
    digests: Mapping[str, str],
    found: Checkpoint,
    reference: str,
    version: str | None,
) -> Snapshot:
    fingerprint = fingerprint_of(digests)
    tokenizer = {name: digests[name] for name in TOKENIZER_FILES.intersection(digests)}
    return Snapshot(
        reference=reference,
        version=version or f"sha256:{fingerprint}",
        folder=folder,
        fingerprint=fingerprint,
        tokenizer_fingerprint=fingerprint_of(tokenizer, family=found.tokenizer_family),
        labels=found.labels,
        architecture=found.architecture,
        problem_type=found.problem_type,
    )


def _not_a_reference(reference: str, folder: Path) -> str:
    if reference and folder.exists():
        return f"{reference}: is a file; name the folder that holds the model"
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", reference):
        return (
            f"{reference}: there is no such folder; for the model of that name on the Hub add a "
            f"revision, {reference}@<commit> (a branch such as @main is resolved to its commit), "
            f"for a folder start in {Path.cwd()}"
        )
    return (
        f"{reference!r}: there is no such folder; name a folder, org/name@revision on the Hub, or "
        "an MLflow URI such as models:/name@alias"
    )


def _make_cache(cache: Path, reference: str) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"{reference}: cannot make the cache {cache} ({error.strerror}); set LAKESCORE_CACHE "
            "to a folder that can be written"
        ) from error


def _copy(source: Path, target: Path) -> str:
    """Copy a file and return the SHA-256 of just the bytes that were copied."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_aside(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="ascii") as file:
        file.write(text)
    os.replace(file.name, path)
