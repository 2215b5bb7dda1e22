"""A local server that speaks as much of the Hub's API as resolving and downloading a model takes.

It records what it was asked for, so that a test can show which files were fetched and which not.
"""

import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Self
from urllib.parse import unquote


@dataclass
class _Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    token: str | None = None  # private: asked for in each request


class HubServer:
    """`with HubServer() as hub:`; set HF_ENDPOINT to `hub.url`."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self._repositories: dict[str, _Repository] = {}
        self._broken = False
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server._answer(self)

            def do_HEAD(self) -> None:
                server._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def downloaded(self) -> list[str]:
        """Names of the files whose content was sent, in order of name."""
        return sorted(
            path.split("/", 5)[5]
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        )

    def publish(self, name: str, folder: Path, *, branch: str = "main") -> str:
        """Make the folder's files the newest commit of a branch, and return the commit."""
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        content = b"".join(k.encode() + b"\0" + files[k] for k in sorted(files))
        commit = hashlib.sha1(content).hexdigest()
        repository = self._repositories.setdefault(name, _Repository())
        repository.commits[commit] = files
        repository.branches[branch] = commit
        return commit

    def gate(self, name: str) -> None:
        """Show the model, but not its files."""
        self._repositories[name].gated = True

    def make_private(self, name: str, token: str) -> None:
        """Hide the model from requests without the token."""
        self._repositories[name].token = token

    def break_down(self) -> None:
        """Answer 500 to everything from now on."""
        self._broken = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(handler.path.split("?")[0])
        self.requests.append((handler.command, path))
        if self._broken:
            return self._send(handler, 500, {})
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and parts[4:5] == ["revision"]:
            name, revision, file = "/".join(parts[2:4]), "/".join(parts[5:]), None
        elif parts[2:3] == ["resolve"]:
            name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        else:
            return self._send(handler, 404, {})
        repository = self._repositories.get(name)
        allowed = repository is not None and (
            repository.token is None
            or handler.headers.get("Authorization") == f"Bearer {repository.token}"
        )
        if repository is None or not allowed:
            return self._send(handler, 401, {"X-Error-Code": "RepoNotFound"})
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self._send(handler, 404, {"X-Error-Code": "RevisionNotFound"})
        files = repository.commits[commit]
        if file is None:
            siblings = [{"rfilename": name} for name in sorted(files)]
            answer = {"id": name, "modelId": name, "sha": commit, "siblings": siblings}
            body = json.dumps({**answer, "private": False, "tags": []}).encode()
            return self._send(handler, 200, {"Content-Type": "application/json"}, body)
        if repository.gated:
            return self._send(handler, 403, {"X-Error-Code": "GatedRepo"})
        if file not in files:
            return self._send(handler, 404, {"X-Error-Code": "EntryNotFound"})
        tag = hashlib.sha256(files[file]).hexdigest()
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        return self._send(handler, 200, headers, files[file])

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str],
        body: bytes = b"",
    ) -> None:
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body)
