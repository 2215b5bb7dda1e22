"""Models that are refused when they are resolved: each message names the finding and the remedy."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lakescore.errors import ModelError
from lakescore.snapshot import resolve
from lakescore.snapshot.weights import read_header
from tests.spoiling import edit, refusal, split, write_safetensors
from tests.tiny_models import tiny_model


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
    "no room for a token": (
        lambda model: edit(model / "tokenizer_config.json", model_max_length=2),
        "its texts may have 2 tokens, 2 special ones included; mend model_max_length in "
        "tokenizer_config.json",
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


def other_sizes(model: Path) -> None:
    """Let the configuration say more than the weights have, where no header shows it."""
    edit(model / "config.json", intermediate_size=96)


def not_a_number(model: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    nothing = {name: value * float("nan") for name, value in tensors.items()}
    save_file(nothing, model / "model.safetensors", metadata={"format": "pt"})


def without_head(model: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if "classifier" not in name}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})


# Whose files are right one by one, so that only a trial shows it: (spoil, what the message has).
REFUSED_BY_TRIAL: dict[str, tuple[Callable[[Path], None], str]] = {
    "an unknown architecture": (
        spoil_config(model_type="bert9"),
        r"transformers cannot load or run it \(\w+: .*bert9.*\); try it with transformers.pipeline",
    ),
    "weights of other sizes": (other_sizes, r"transformers cannot load or run it \(RuntimeError: "),
    "weights that are no numbers": (
        not_a_number,
        r"its scores of two short texts are not finite; its weights are damaged",
    ),
    "no head": (
        without_head,
        r"its weights lack classifier.bias \(2 in all\); save the fine-tuned model again, with its",
    ),
    "quantised weights": (
        spoil_config(quantization_config={"quant_method": "bitsandbytes"}),
        r"its weights are quantised \(quantization_config in config.json\), which lakescore",
    ),
}


class TestRefusal:
    @pytest.mark.parametrize("kind", REFUSED)
    def test_names_what_was_found_and_what_to_do(self, kind: str, model: Path, cache: Path) -> None:
        spoil, message = REFUSED[kind]
        spoil(model)
        assert refusal(model, cache) == message

    def test_of_a_decoder_without_a_pad_token_of_its_own(
        self, model: Path, cache: Path, tmp_path: Path
    ) -> None:
        import torch
        from transformers import GPT2Config, GPT2ForSequenceClassification

        folder = tiny_model(tmp_path / "gpt2", tokenizer="bpe", head="sequence-classification")
        config = GPT2Config(
            vocab_size=600, n_embd=16, n_layer=1, n_head=2, n_positions=64, num_labels=2,
            id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1}, initializer_range=0.5,
        )  # fmt: skip
        torch.manual_seed(0)
        GPT2ForSequenceClassification(config).save_pretrained(folder)
        found = refusal(folder, cache, "sentiment")
        assert re.match(r"transformers cannot load or run it .*no padding token is defined", found)
        edit(folder / "config.json", pad_token_id=5)  # of another token than the tokenizer's
        found = refusal(folder, cache, "sentiment")
        assert found.startswith("it gives a text other scores beside a longer one than alone")
        edit(folder / "config.json", pad_token_id=1)  # <pad>
        assert resolve(str(folder), task="sentiment", cache=cache).labels == ("bad", "good")

    @pytest.mark.parametrize("kind", REFUSED_BY_TRIAL)
    def test_names_what_a_trial_found(self, kind: str, model: Path, cache: Path) -> None:
        spoil, message = REFUSED_BY_TRIAL[kind]
        spoil(model)
        found = refusal(model, cache)
        assert re.match(message, found), found

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
