import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lakescore.errors import ModelError
from lakescore.snapshot import Snapshot, open_snapshot, resolve, resolve_any
from lakescore.snapshot.weights import read_header
from tests.hub_server import HubServer
from tests.tiny_models import ENTITY_LABELS, SENTIMENT_LABELS, tiny_model

FILES = [
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("shipped") / "entities")


@pytest.fixture
def model(shipped: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be spoiled."""
    return Path(shutil.copytree(shipped, tmp_path / "model"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def edit(path: Path, **changes: object) -> None:
    """Change a JSON file; None removes the key."""
    value = json.loads(path.read_text("utf-8"))
    value.update(changes)
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}), "utf-8")


def refusal(reference: Path | str, cache: Path, task: str = "entities") -> str:
    """Return the message, without the reference that it starts with."""
    with pytest.raises(ModelError) as caught:
        resolve(str(reference), task=task, cache=cache)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(f"{reference}: ")
    assert message.count("\n") <= 1
    assert [path for path in cache.glob("*") if path.is_dir() and path.name != "refs"] == []
    return message.removeprefix(f"{reference}: ")


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    header: dict[str, object] = {}
    position = 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        offsets = [position, position + size]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        position += size
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(position))


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

    def test_needs_neither_torch_nor_mlflow_nor_the_hub(self, model: Path, cache: Path) -> None:
        script = (
            "import sys; from lakescore.snapshot import resolve\n"
            f"resolve({str(model)!r}, task='entities', cache=__import__('pathlib').Path("
            f"{str(cache)!r}))\n"
            "heavy = {'torch', 'transformers', 'mlflow', 'pyspark', 'huggingface_hub', 'numpy'}\n"
            "print(sorted(heavy & set(sys.modules)))"
        )
        assert run_python(script) == "[]\n"


def split(model: Path) -> None:
    """Split the weights in two, by the format alone."""
    whole = (model / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header.pop("__metadata__", None)
    data = whole[8 + length :]
    names = sorted(header)
    weight_map = {}
    for part, members in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{part}-of-00002.safetensors"
        own, content = {}, b""
        for name in members:
            begin, end = header[name]["data_offsets"]
            offsets = [len(content), len(content) + end - begin]
            own[name] = {**header[name], "data_offsets": offsets}
            content += data[begin:end]
            weight_map[name] = file
        raw = json.dumps(own).encode()
        (model / file).write_bytes(len(raw).to_bytes(8, "little") + raw + content)
    index = {"metadata": {"total_size": len(data)}, "weight_map": weight_map}
    (model / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    (model / "model.safetensors").unlink()


def run_python(script: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def spoil_config(**changes: object) -> Callable[[Path], None]:
    return lambda model: edit(model / "config.json", **changes)


def spoil_tokenizer(**changes: object) -> Callable[[Path], None]:
    return lambda model: edit(model / "tokenizer_config.json", **changes)


def remove(*names: str) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        for name in names:
            (model / name).unlink()

    return spoil


def one_shard_is_a_pickle(model: Path) -> None:
    split(model)
    shard = model / "model-00002-of-00002.safetensors"
    shard.rename(model / "pytorch_model-00002-of-00002.bin")


def no_pad_token(model: Path) -> None:
    edit(model / "tokenizer_config.json", pad_token=None)
    edit(model / "special_tokens_map.json", pad_token=None)


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        (model / name).write_bytes(content)

    return spoil


def rename_weights(name: str) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        (model / "model.safetensors").rename(model / name)

    return spoil


def index(weight_map: object) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        split(model)
        edit(model / "model.safetensors.index.json", weight_map=weight_map)

    return spoil


def slow_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "spiece.model").write_bytes(b"sentencepiece")
    edit(model / "tokenizer_config.json", tokenizer_class="AlbertTokenizer")


def slow_tokenizer_of_a_fast_family(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "vocab.txt").write_text("[PAD]\n", "utf-8")
    edit(model / "tokenizer_config.json", tokenizer_class="BertJapaneseTokenizer")


def shard_without_its_tensor(model: Path) -> None:
    split(model)
    write_safetensors(model / "model-00002-of-00002.safetensors", {"other": [1]})


SLOW = (
    "its tokenizer is a slow one (no tokenizer.json), which has no offsets; make a fast one: "
    "AutoTokenizer.from_pretrained(…, use_fast=True).save_pretrained(folder)"
)
SET_LABELS = "set id2label in config.json and save or register it again"
NO_CODE = "lakescore runs none: remove the key if the model works without, or take another model"
INTERNAL = "sets a field that is transformers' own and can make it run code"
TORN = "model.safetensors is cut short or damaged: it has {}; fetch or save it again"

REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickle weights": (
        rename_weights("pytorch_model.bin"),
        "its weights are a pickle (pytorch_model.bin), which can run code when it is read; convert "
        "it on a machine that you can lose: AutoModel….from_pretrained(…).save_pretrained(folder, "
        "safe_serialization=True)",
    ),
    "no weights": (
        remove("model.safetensors"),
        "has no model.safetensors; save it with save_pretrained(…, safe_serialization=True)",
    ),
    "a shard that is a pickle": (
        one_shard_is_a_pickle,
        "model.safetensors.index.json names model-00002-of-00002.safetensors, which the model "
        "lacks (there is pytorch_model-00002-of-00002.bin, a pickle, which is not read); fetch or "
        "save it again",
    ),
    "an index without a map": (
        index([]),
        "model.safetensors.index.json has no weight_map; save the model again",
    ),
    "an index that leads elsewhere": (
        index({"a": "../model.safetensors"}),
        "model.safetensors.index.json names '../model.safetensors', which is not a .safetensors "
        "file beside it; save the model again with save_pretrained(…, safe_serialization=True)",
    ),
    "an index that names a pickle": (
        index({"a": "pytorch_model.bin"}),
        "model.safetensors.index.json names 'pytorch_model.bin', which is not a .safetensors file "
        "beside it; save the model again with save_pretrained(…, safe_serialization=True)",
    ),
    "a shard without its tensor": (
        shard_without_its_tensor,
        "model-00002-of-00002.safetensors lacks the tensor "
        "bert.embeddings.LayerNorm.weight, bert.embeddings.token_type_embeddings.weight, "
        "bert.encoder.layer.0.attention.output.LayerNorm.bias and 16 more that "
        "model.safetensors.index.json places in it; fetch or save the model again",
    ),
    "an adapter alone": (
        rename_weights("adapter_model.safetensors"),
        "holds an adapter (adapter_model.safetensors) without its model; merge them (PEFT's "
        "merge_and_unload) and save the whole",
    ),
    "weights of another name": (
        rename_weights("ner.safetensors"),
        "has no model.safetensors and no model.safetensors.index.json, only ner.safetensors; save "
        "it again with save_pretrained, or rename its only file",
    ),
    "a Git LFS pointer": (
        write("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "model.safetensors is a Git LFS pointer, not weights; run `git lfs pull` where it was "
        "cloned",
    ),
    "empty weights": (
        write("model.safetensors", b""),
        TORN.format("a header longer than its 0 bytes"),
    ),
    "weights without tensors": (
        write("model.safetensors", (2).to_bytes(8, "little") + b"{}"),
        "its weights hold no tensors; fetch or save it again",
    ),
    "a header that is no JSON": (
        write("model.safetensors", (2).to_bytes(8, "little") + b"{]"),
        TORN.format("a header that is not valid"),
    ),
    "a head of another size": (
        lambda model: write_safetensors(model / "model.safetensors", {"classifier.weight": [3, 2]}),
        "classifier.weight has 3 outputs and id2label in config.json names 9 labels; make them "
        "agree",
    ),
    "no config": (
        remove("config.json"),
        "has no config.json; name a folder or revision that save_pretrained wrote",
    ),
    "a config that is no JSON": (
        write("config.json", b'{"a": '),
        "config.json is not valid JSON (Expecting value: line 1 column 7 (char 6)); fetch or save "
        "the model again",
    ),
    "a config that is not text": (
        write("config.json", b"\xff\xfe\x00"),
        "config.json is not valid JSON (UnicodeDecodeError); fetch or save the model again",
    ),
    "a config nested without end": (
        write("config.json", b"[" * 200_000),
        "config.json is not valid JSON (RecursionError); fetch or save the model again",
    ),
    "a config that is a list": (
        write("config.json", b"[]"),
        "config.json is not a JSON object; save the model again",
    ),
    "a number that is none": (
        write("config.json", b'{"hidden_dropout_prob": NaN}'),
        "config.json is not valid JSON (NaN is not a number of JSON); fetch or save the model "
        "again",
    ),
    "an absurd size": (
        spoil_config(max_position_embeddings=-1),
        "max_position_embeddings in config.json is -1; it must be a positive integer",
    ),
    "code of the model's own": (
        spoil_config(auto_map={"AutoModel": "modeling_evil.Evil"}),
        f"'auto_map' in config.json asks for Python code of its own; {NO_CODE}",
    ),
    "code, nested": (
        spoil_config(text_config={"inner": [{"auto_map": {}}]}),
        f"'auto_map' in config.json asks for Python code of its own; {NO_CODE}",
    ),
    "code of the tokenizer's own": (
        spoil_tokenizer(auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]}),
        f"'auto_map' in tokenizer_config.json asks for Python code of its own; {NO_CODE}",
    ),
    "a pipeline of its own": (
        spoil_config(custom_pipelines={"ner": {"impl": "evil.Pipeline"}}),
        f"'custom_pipelines' in config.json asks for Python code of its own; {NO_CODE}",
    ),
    "an internal key": (
        spoil_config(_attn_implementation_internal="evil/kernel"),
        f"'_attn_implementation_internal' in config.json {INTERNAL}; {NO_CODE}",
    ),
    "an internal key, nested": (
        spoil_config(text_config={"_experts_implementation_internal": "eager"}),
        f"'_experts_implementation_internal' in config.json {INTERNAL}; {NO_CODE}",
    ),
    "a kernel from the Hub": (
        spoil_config(_attn_implementation="evil/kernel"),
        f"'_attn_implementation' in config.json asks for a kernel from the Hub; {NO_CODE}",
    ),
    "labels without names": (
        spoil_config(id2label={str(n): f"LABEL_{n}" for n in range(9)}),
        f"labels are LABEL_0..LABEL_8; {SET_LABELS}",
    ),
    "one label without a name": (
        spoil_config(id2label={"0": "LABEL_0"}),
        f"labels are LABEL_0; {SET_LABELS}",
    ),
    "no labels": (spoil_config(id2label=None), f"config.json has no id2label; {SET_LABELS}"),
    "labels with a gap": (
        spoil_config(id2label={"0": "O", "2": "B-PER"}),
        f"id2label's keys are not 0 to 1; {SET_LABELS}",
    ),
    "labels with a word for a key": (
        spoil_config(id2label={"O": "0"}),
        f"id2label's keys are not 0 to 0; {SET_LABELS}",
    ),
    "a label that is a number": (
        spoil_config(id2label={"0": 0}),
        f"id2label has a label that is not a name; {SET_LABELS}",
    ),
    "a label twice": (
        spoil_config(id2label={"0": "O", "1": "O"}),
        f"id2label has 'O' more than once; {SET_LABELS}",
    ),
    "another architecture": (
        spoil_config(architectures=["BertForSequenceClassification"]),
        "architecture BertForSequenceClassification does not fit the task entities; name a "
        "token-classification model",
    ),
    "no architecture": (
        spoil_config(architectures=None),
        "architecture None does not fit the task entities; name a token-classification model",
    ),
    "an unknown problem type": (
        spoil_config(problem_type="ranking"),
        "problem_type in config.json is 'ranking'; known: regression, "
        "single_label_classification, multi_label_classification",
    ),
    "no tokenizer": (
        remove("tokenizer.json"),
        "has no tokenizer; save one beside the model with AutoTokenizer.from_pretrained(…)"
        ".save_pretrained(folder)",
    ),
    "a slow tokenizer": (slow_tokenizer, SLOW),
    "a slow tokenizer of a fast family": (slow_tokenizer_of_a_fast_family, SLOW),
    "no pad token": (
        no_pad_token,
        "its tokenizer has no pad token, so that texts cannot be batched; set pad_token in "
        'tokenizer_config.json and pad_token_id in config.json (for GPT-2: "<|endoftext|>")',
    ),
    "an unknown pad token": (
        spoil_tokenizer(pad_token="<pad>"),
        "pad token '<pad>' is not in tokenizer.json; set pad_token in tokenizer_config.json to a "
        "token that is",
    ),
    "a tokenizer without a vocabulary": (
        write("tokenizer.json", b'{"model": {}}'),
        "tokenizer.json has no vocabulary; save the tokenizer again",
    ),
    "another model's tokenizer": (
        spoil_config(vocab_size=100),
        "tokenizer.json has ids up to 799 and vocab_size in config.json is 100; the tokenizer "
        "belongs to another model",
    ),
}


def test_resolve_any_takes_both_architectures(model: Path, cache: Path, tmp_path: Path) -> None:
    mood = tiny_model(tmp_path / "mood", head="sequence-classification")
    assert [resolve_any(str(each), cache=cache).architecture for each in (model, mood)] == [
        "token-classification",
        "sequence-classification",
    ]
    edit(mood / "config.json", architectures=["BertForMaskedLM"])
    with pytest.raises(ModelError) as caught:
        resolve_any(str(mood), cache=cache)
    assert str(caught.value) == (
        f"{mood}: architecture BertForMaskedLM fits no task; name a token-classification or "
        "sequence-classification model"
    )


class TestRefusal:
    @pytest.mark.parametrize("kind", REFUSED)
    def test_names_what_was_found_and_what_to_do(self, kind: str, model: Path, cache: Path) -> None:
        spoil, message = REFUSED[kind]
        spoil(model)
        assert refusal(model, cache) == message

    def test_of_a_link_out_of_the_folder(self, model: Path, cache: Path, tmp_path: Path) -> None:
        (model / "config.json").rename(tmp_path / "config.json")
        (model / "config.json").symlink_to(tmp_path / "config.json")
        assert refusal(model, cache) == (
            "config.json is a link that leads out of the folder; copy the file there"
        )

    @pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99, 0.99999])
    def test_of_weights_cut_short_anywhere(self, share: float, model: Path, cache: Path) -> None:
        weights = model / "model.safetensors"
        content = weights.read_bytes()
        weights.write_bytes(content[: int(len(content) * share)])
        assert refusal(model, cache).startswith("model.safetensors is cut short or damaged: ")

    def test_of_weights_with_bytes_at_the_end(self, model: Path, cache: Path) -> None:
        with (model / "model.safetensors").open("ab") as file:
            file.write(b"x")
        assert refusal(model, cache).startswith("model.safetensors is cut short or damaged: ")

    @settings(
        max_examples=200,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        header=st.recursive(
            st.none() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(
                    st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__"]), inner
                )
            ),
        ),
        data=st.binary(max_size=8),
    )
    def test_of_arbitrary_headers_is_always_a_model_error(
        self, header: object, data: bytes, tmp_path: Path
    ) -> None:
        raw = json.dumps(header).encode()
        path = tmp_path / "model.safetensors"
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
        try:
            shapes = read_header(path, "model")
        except ModelError as error:
            assert str(error).startswith("model: model.safetensors is cut short or damaged: ")
        else:
            assert all(isinstance(shape, list) for shape in shapes.values())

    def test_of_references_that_are_none(self, cache: Path, tmp_path: Path) -> None:
        file = tmp_path / "file.safetensors"
        file.touch()
        assert refusal(file, cache) == "is a file; name the folder that holds the model"
        assert refusal("acme/ner", cache) == (
            "there is no such folder; for the model of that name on the Hub add a revision, "
            "acme/ner@<commit> (a branch such as @main is resolved to its commit), for a folder "
            f"start in {Path.cwd()}"
        )
        with pytest.raises(ModelError) as caught:
            resolve("", task="entities", cache=cache)
        assert str(caught.value) == (
            "'': there is no such folder; name a folder, org/name@revision on the Hub, or an "
            "MLflow URI such as models:/name@alias"
        )

    def test_of_a_cache_that_cannot_be_made(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert refusal(model, tmp_path / "file" / "cache") == (
            f"cannot make the cache {tmp_path}/file/cache (Not a directory); set LAKESCORE_CACHE "
            "to a folder that can be written"
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
        write_safetensors(model / "model.safetensors", {"a": [1024, 1024, 4]})
        script = (
            "import sys, time; from pathlib import Path\n"
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
            for _ in range(4)
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
        rename_weights("pytorch_model.bin")(model)
        hub.publish("acme/ner", model)
        assert refusal("acme/ner@main", cache) == REFUSED["pickle weights"][1]
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
        assert refusal("acme/ner@main", cache) == (
            "cannot reach http://127.0.0.1:9 (ConnectionError); check the network and "
            "HF_ENDPOINT, or name a folder"
        )
