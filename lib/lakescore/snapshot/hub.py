"""A model on the Hugging Face Hub at a commit; the driver alone asks, for named files only."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lakescore.errors import ModelError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REFERENCE = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)@(?P<revision>\w[\w./-]*)")
_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class HubModel:
    """A model at a commit: the names of its files, and each of them on demand."""

    reference: str
    name: str
    commit: str
    names: frozenset[str]
    folder: Path | None = None  # where there is no network: what the Hub's own cache holds

    def path(self, name: str) -> Path:
        """Download one file at the commit, or find it in the Hub's own cache."""
        if self.folder is not None:
            return self.folder / name
        from huggingface_hub import hf_hub_download

        with _errors_named(self.reference):
            return Path(
                hf_hub_download(
                    self.name,
                    name,
                    revision=self.commit,
                    endpoint=_endpoint(),
                    cache_dir=os.environ.get("HF_HUB_CACHE"),
                    etag_timeout=_TIMEOUT_SECONDS,
                )
            )


def split_reference(reference: str) -> tuple[str, str] | None:
    """Split `org/name@revision`; None for what is not one."""
    match = _REFERENCE.fullmatch(reference)
    return (match["name"], match["revision"]) if match else None


def is_commit(revision: str) -> bool:
    """Say whether a revision is a full commit, which never moves."""
    return _COMMIT.fullmatch(revision) is not None


def find_model(reference: str, name: str, revision: str) -> HubModel:
    """Resolve a commit, branch or tag to its commit and list the files; none is downloaded.

    With HF_HUB_OFFLINE only the Hub's own cache is asked. The token is huggingface_hub's: HF_TOKEN
    or the one of `hf auth login`.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    with _errors_named(reference):
        if constants.HF_HUB_OFFLINE or _is_true(os.environ.get("HF_HUB_OFFLINE")):
            folder = Path(
                snapshot_download(
                    name,
                    revision=revision,
                    local_files_only=True,
                    cache_dir=os.environ.get("HF_HUB_CACHE"),
                )
            )
            names = frozenset(path.name for path in folder.iterdir() if path.is_file())
            return HubModel(reference, name, folder.name, names, folder)
        info = HfApi(endpoint=_endpoint()).model_info(
            name, revision=revision, timeout=_TIMEOUT_SECONDS
        )
    if not info.sha or not is_commit(info.sha) or (is_commit(revision) and info.sha != revision):
        raise ModelError(
            f"{reference}: {_shown_endpoint()} answered with commit {info.sha}; name the commit "
            "that its history shows"
        )
    names = frozenset(file.rfilename for file in info.siblings or ())
    return HubModel(reference, name, info.sha, names)


def _endpoint() -> str | None:
    # huggingface_hub reads it when it is imported, which may be long before a job sets it.
    return os.environ.get("HF_ENDPOINT") or None


def _shown_endpoint() -> str:
    return _endpoint() or "https://huggingface.co"


def _is_true(value: str | None) -> bool:
    return (value or "").upper() in {"1", "ON", "YES", "TRUE"}


@contextmanager
def _errors_named(reference: str) -> Iterator[None]:
    """Turn what can go wrong between here and the Hub into one line with its remedy."""
    from huggingface_hub import errors

    # Its HTTP client differs by version: requests (whose errors are OSErrors), httpx, httpx2.
    clients = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    unreachable = (OSError, *(client.HTTPError for client in clients))
    endpoint = _shown_endpoint()
    try:
        yield
    except errors.GatedRepoError as error:
        problem = "is gated; accept its terms on its page and set HF_TOKEN to a token of that user"
        raise ModelError(f"{reference}: {problem}") from error
    except errors.RepositoryNotFoundError as error:
        problem = f"{endpoint} has no such model, or it is private; check the name or set HF_TOKEN"
        raise ModelError(f"{reference}: {problem}") from error
    except errors.RevisionNotFoundError as error:
        problem = "the model has no such revision; name one of its commits, branches or tags"
        raise ModelError(f"{reference}: {problem}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if _is_true(os.environ.get("HF_HUB_OFFLINE")):
            problem = "is not on this machine and HF_HUB_OFFLINE is set; unset it, or name a folder"
        else:
            problem = (
                f"cannot reach {endpoint}; check the network and HF_ENDPOINT, or name a folder"
            )
        raise ModelError(f"{reference}: {problem}") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        problem = f"{endpoint} answered {status}; try again later, or name a folder"
        raise ModelError(f"{reference}: {problem}") from error
    except errors.HFValidationError as error:
        problem = "is not a name of the Hub; write org/name@revision"
        raise ModelError(f"{reference}: {problem}") from error
    except unreachable as error:
        kind = type(error).__name__
        problem = (
            f"cannot reach {endpoint} ({kind}); check the network and HF_ENDPOINT, or name a folder"
        )
        raise ModelError(f"{reference}: {problem}") from error
