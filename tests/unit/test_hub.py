"""Models on a local server that speaks the Hub's API: pinned to a commit, fetched by name."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lakescore.snapshot import resolve
from tests.hub_server import HubServer
from tests.spoiling import FILES, edit, refusal
from tests.tiny_models import tiny_model


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


class TestHub:
    def test_a_branch_is_resolved_to_its_commit_and_recorded(
        self, hub: HubServer, model: Path, cache: Path
    ) -> None:
        local = resolve(str(model), task="entities", cache=cache)
        commit = hub.publish("acme/ner", model)
        snapshot = resolve("acme/ner@main", task="entities", cache=cache)
        assert (snapshot.reference, snapshot.version) == ("acme/ner@main", f"acme/ner@{commit}")
        assert (snapshot.folder, snapshot.fingerprint) == (local.folder, local.fingerprint)

    def test_only_allowed_files_are_fetched_and_at_the_commit(
        self, hub: HubServer, model: Path, cache: Path
    ) -> None:
        for name in ("pytorch_model.bin", "modeling_evil.py", "README.md", "tf_model.h5"):
            (model / name).write_bytes(b"anything")
        commit = hub.publish("acme/ner", model)
        resolve("acme/ner@main", task="entities", cache=cache)
        assert hub.downloaded == FILES
        fetched = [path for _, path in hub.requests if "/resolve/" in path]
        assert {path.split("/")[4] for path in fetched} == {commit}

    def test_a_moved_branch_is_another_model(
        self, hub: HubServer, model: Path, cache: Path, tmp_path: Path
    ) -> None:
        old = hub.publish("acme/ner", model)
        before = resolve("acme/ner@main", task="entities", cache=cache)
        new = hub.publish("acme/ner", tiny_model(tmp_path / "new", seed=1))
        after = resolve("acme/ner@main", task="entities", cache=cache)
        assert (before.version, after.version) == (f"acme/ner@{old}", f"acme/ner@{new}")
        assert before.fingerprint != after.fingerprint
        assert resolve(f"acme/ner@{old}", task="entities", cache=cache).folder == before.folder

    def test_a_commit_that_was_resolved_before_asks_nobody(
        self, hub: HubServer, model: Path, cache: Path
    ) -> None:
        commit = hub.publish("acme/ner", model)
        first = resolve(f"acme/ner@{commit}", task="entities", cache=cache)
        asked = len(hub.requests)
        hub.break_down()
        assert resolve(f"acme/ner@{commit}", task="entities", cache=cache) == first
        assert len(hub.requests) == asked

    def test_what_the_hubs_own_cache_holds_is_found_offline(
        self, hub: HubServer, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commit = hub.publish("acme/ner", model)
        first = resolve(f"acme/ner@{commit}", task="entities", cache=cache)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        asked = len(hub.requests)
        other_cache = cache.with_name("other")
        again = resolve(f"acme/ner@{commit}", task="entities", cache=other_cache)
        assert (again.version, again.fingerprint) == (first.version, first.fingerprint)
        assert len(hub.requests) == asked

    def test_weights_are_not_fetched_for_a_model_that_is_refused(
        self, hub: HubServer, model: Path, cache: Path
    ) -> None:
        edit(model / "config.json", auto_map={"AutoModel": "evil.Evil"})
        hub.publish("acme/ner", model)
        assert "auto_map" in refusal("acme/ner@main", cache)
        assert "model.safetensors" not in hub.downloaded

    def test_nothing_is_fetched_where_there_are_only_pickles(
        self, hub: HubServer, model: Path, cache: Path
    ) -> None:
        (model / "model.safetensors").rename(model / "pytorch_model.bin")
        hub.publish("acme/ner", model)
        assert refusal("acme/ner@main", cache) == (
            "its weights are a pickle (pytorch_model.bin), which can run code when it is read; "
            "convert it on a machine that you can lose: AutoModel….from_pretrained(…)."
            "save_pretrained(folder, safe_serialization=True)"
        )
        assert hub.downloaded == []

    def test_a_private_model_takes_the_token(
        self, hub: HubServer, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commit = hub.publish("acme/ner", model)
        hub.make_private("acme/ner", "secret")
        assert refusal("acme/ner@main", cache) == (
            f"{hub.url} has no such model, or it is private; check the name or set HF_TOKEN"
        )
        monkeypatch.setenv("HF_TOKEN", "secret")
        snapshot = resolve("acme/ner@main", task="entities", cache=cache)
        assert snapshot.version == f"acme/ner@{commit}"

    def test_each_failure_has_its_own_remedy(
        self, hub: HubServer, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.publish("acme/ner", model)
        hub.publish("acme/gated", model)
        hub.gate("acme/gated")
        assert refusal("acme/gated@main", cache) == (
            "is gated; accept its terms on its page and set HF_TOKEN to a token of that user"
        )
        assert refusal("acme/none@main", cache) == (
            f"{hub.url} has no such model, or it is private; check the name or set HF_TOKEN"
        )
        assert refusal("acme/ner@v9", cache) == (
            "the model has no such revision; name one of its commits, branches or tags"
        )
        assert (
            refusal("acme--x/ner@main", cache)
            == "is not a name of the Hub; write org/name@revision"
        )
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert refusal("acme/ner@main", cache) == (
            "is not on this machine and HF_HUB_OFFLINE is set; unset it, or name a folder"
        )
        monkeypatch.delenv("HF_HUB_OFFLINE")
        hub.break_down()
        assert refusal("acme/ner@main", cache) == (
            f"{hub.url} answered 500; try again later, or name a folder"
        )

    def test_a_hub_that_is_not_there_is_named(
        self, hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        assert re.fullmatch(  # the word for it is of requests or of httpx
            r"cannot reach http://127\.0\.0\.1:9 \(Connect(ion)?Error\); check the network and "
            "HF_ENDPOINT, or name a folder",
            refusal("acme/ner@main", cache),
        )
