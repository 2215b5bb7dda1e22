"""Folders made into snapshots: what is copied, its fingerprint, the cache."""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lakescore.errors import ModelError
from lakescore.snapshot import Snapshot, open_snapshot, resolve
from tests.spoiling import FILES, edit, split
from tests.tiny_models import ENTITY_LABELS, SENTIMENT_LABELS, tiny_model


class TestFolder:
    def test_becomes_a_snapshot_named_by_its_fingerprint(self, model: Path, cache: Path) -> None:
        snapshot = resolve(str(model), task="entities", cache=cache)
        digests = [
            (name, hashlib.sha256((model / name).read_bytes()).hexdigest()) for name in FILES
        ]
        text = "".join(f"{name}\0{digest}\n" for name, digest in digests)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        assert snapshot == Snapshot(
            reference=str(model),
            version=f"sha256:{fingerprint}",
            folder=cache / fingerprint,
            fingerprint=fingerprint,
            tokenizer_fingerprint=snapshot.tokenizer_fingerprint,
            labels=ENTITY_LABELS,
            architecture="token-classification",
            problem_type=None,
        )
        assert sorted(path.name for path in cache.iterdir()) == [fingerprint]
        assert sorted(path.name for path in snapshot.folder.iterdir()) == sorted(
            [*FILES, "snapshot.json"]
        )

    def test_is_copied_read_only_and_byte_for_byte(self, model: Path, cache: Path) -> None:
        snapshot = resolve(str(model), task="entities", cache=cache)
        for name in FILES:
            copied = snapshot.folder / name
            assert copied.read_bytes() == (model / name).read_bytes()
            assert stat.S_IMODE(copied.stat().st_mode) == 0o444

    def test_resolved_twice_is_the_same_snapshot(self, model: Path, cache: Path) -> None:
        first = resolve(str(model), task="entities", cache=cache)
        assert resolve(str(model), task="entities", cache=cache) == first
        assert open_snapshot(first.folder, reference=str(model)) == first

    def test_of_another_seed_has_another_fingerprint_and_the_same_tokenizer(
        self, model: Path, cache: Path, tmp_path: Path
    ) -> None:
        other = tiny_model(tmp_path / "other", seed=1)
        first = resolve(str(model), task="entities", cache=cache)
        second = resolve(str(other), task="entities", cache=cache)
        assert first.fingerprint != second.fingerprint
        assert first.tokenizer_fingerprint == second.tokenizer_fingerprint

    def test_leaves_all_but_the_allowed_files_behind(self, model: Path, cache: Path) -> None:
        plain = resolve(str(model), task="entities", cache=cache)
        for name in ("pytorch_model.bin", "modeling_evil.py", "training_args.bin", "README.md"):
            (model / name).write_bytes(b"anything")
        (model / "onnx").mkdir()
        assert resolve(str(model), task="entities", cache=cache) == plain

    @pytest.mark.parametrize("tokenizer", ["bpe", "unigram"])
    def test_of_other_tokenizers_is_taken(
        self, tokenizer: str, cache: Path, tmp_path: Path
    ) -> None:
        folder = tiny_model(
            tmp_path / "model",
            tokenizer=tokenizer,  # type: ignore[arg-type]
            head="sequence-classification",
            problem_type="multi_label_classification",
        )
        snapshot = resolve(str(folder), task="sentiment", cache=cache)
        assert (snapshot.labels, snapshot.architecture, snapshot.problem_type) == (
            SENTIMENT_LABELS,
            "sequence-classification",
            "multi_label_classification",
        )

    def test_in_shards_is_taken_with_its_index(self, model: Path, cache: Path) -> None:
        split(model)
        snapshot = resolve(str(model), task="entities", cache=cache)
        assert sorted(path.name for path in snapshot.folder.glob("model*")) == [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ]

    def test_with_single_file_and_shards_takes_the_single_file(
        self, model: Path, cache: Path
    ) -> None:
        plain = resolve(str(model), task="entities", cache=cache)
        whole = (model / "model.safetensors").read_bytes()
        split(model)
        (model / "model.safetensors").write_bytes(whole)
        assert resolve(str(model), task="entities", cache=cache) == plain

    def test_without_tokenizer_json_is_taken_where_the_family_makes_a_fast_one(
        self, model: Path, cache: Path
    ) -> None:
        (model / "tokenizer.json").unlink()
        (model / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n", "utf-8")
        edit(model / "tokenizer_config.json", tokenizer_class=None)
        assert resolve(str(model), task="entities", cache=cache).labels == ENTITY_LABELS

    def test_of_the_hubs_own_cache_may_link_to_its_blobs(
        self, model: Path, cache: Path, tmp_path: Path
    ) -> None:
        hub = tmp_path / "models--acme--ner"
        folder = hub / "snapshots" / ("0" * 40)
        folder.mkdir(parents=True)
        (hub / "blobs").mkdir()
        for name in FILES:
            shutil.copy(model / name, hub / "blobs" / name)
            (folder / name).symlink_to(f"../../blobs/{name}")
        plain = resolve(str(model), task="entities", cache=cache)
        assert resolve(str(folder), task="entities", cache=cache).fingerprint == plain.fingerprint

    def test_known_already_needs_neither_torch_nor_mlflow_nor_the_hub(
        self, model: Path, cache: Path
    ) -> None:
        resolve(str(model), task="entities", cache=cache)  # the first time it is tried, by torch
        script = (
            "import sys; from lakescore.snapshot import resolve\n"
            f"resolve({str(model)!r}, task='entities', cache=__import__('pathlib').Path("
            f"{str(cache)!r}))\n"
            "heavy = {'torch', 'transformers', 'mlflow', 'pyspark', 'huggingface_hub', 'numpy'}\n"
            "print(sorted(heavy & set(sys.modules)))"
        )
        assert run_python(script) == "[]\n"


def run_python(script: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_without_a_task_both_architectures_are_taken(
    model: Path, cache: Path, tmp_path: Path
) -> None:
    mood = tiny_model(tmp_path / "mood", head="sequence-classification")
    assert [resolve(str(each), task=None, cache=cache).architecture for each in (model, mood)] == [
        "token-classification",
        "sequence-classification",
    ]
    edit(mood / "config.json", architectures=["BertForMaskedLM"])
    with pytest.raises(ModelError) as caught:
        resolve(str(mood), task=None, cache=cache)
    assert str(caught.value) == (
        f"{mood}: architecture BertForMaskedLM fits no task; name a token-classification or "
        "sequence-classification model"
    )


class TestCache:
    def test_is_where_the_environment_says(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LAKESCORE_CACHE", str(tmp_path / "elsewhere"))
        assert resolve(str(model), task="entities").folder.parent == tmp_path / "elsewhere"

    @pytest.mark.parametrize("changed", ["config.json", "model.safetensors"])
    def test_of_a_changed_file_is_refused(self, changed: str, model: Path, cache: Path) -> None:
        snapshot = resolve(str(model), task="entities", cache=cache)
        file = snapshot.folder / changed
        file.chmod(0o644)
        file.write_bytes(file.read_bytes()[:-1] + b" ")
        message = (
            f"{changed} was changed since its fingerprint {snapshot.fingerprint[:12]} was taken; "
            f"delete {snapshot.folder} and resolve the model again"
        )
        with pytest.raises(ModelError) as caught:
            open_snapshot(snapshot.folder, reference="again")
        assert str(caught.value) == f"again: {message}"
        with pytest.raises(ModelError) as caught:
            resolve(str(model), task="entities", cache=cache)
        assert str(caught.value) == f"{model}: {message}"

    def test_of_an_added_or_removed_file_is_refused(self, model: Path, cache: Path) -> None:
        folder = resolve(str(model), task="entities", cache=cache).folder
        (folder / "adapter_config.json").write_text("{}", "utf-8")
        with pytest.raises(ModelError, match=r"adapter_config\.json was added since"):
            open_snapshot(folder)
        (folder / "adapter_config.json").unlink()
        (folder / "special_tokens_map.json").unlink()
        with pytest.raises(ModelError, match=r"special_tokens_map\.json was removed since"):
            open_snapshot(folder)

    def test_of_a_changed_manifest_is_refused(self, model: Path, cache: Path) -> None:
        folder = resolve(str(model), task="entities", cache=cache).folder
        (folder / "snapshot.json").chmod(0o644)
        for key, value in (("fingerprint", "0" * 64), ("files", {}), ("files", 3)):
            edit(folder / "snapshot.json", **{key: value})
            with pytest.raises(ModelError, match=r"delete .* and resolve the model again"):
                open_snapshot(folder)

    def test_of_what_is_no_snapshot_is_refused(self, model: Path) -> None:
        with pytest.raises(ModelError) as caught:
            open_snapshot(model)
        assert str(caught.value) == (
            f"{model}: has no snapshot.json; it is not a snapshot: resolve it"
        )

    def test_serves_many_processes_that_resolve_the_same_model_at_once(
        self, model: Path, cache: Path
    ) -> None:
        script = (
            "import sys; from pathlib import Path\n"
            "from lakescore.snapshot import resolve\n"
            "print('ready', flush=True); sys.stdin.readline()\n"
            "print(resolve(sys.argv[1], task='entities', cache=Path(sys.argv[2])).fingerprint)"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(model), str(cache)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        outputs = set()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            outputs.add(process.communicate()[0])
            assert process.returncode == 0
        fingerprint = resolve(str(model), task="entities", cache=cache).fingerprint
        assert outputs == {f"{fingerprint}\n"}
        assert [path.name for path in cache.iterdir()] == [fingerprint]
