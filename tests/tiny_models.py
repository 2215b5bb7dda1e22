"""Tiny models for tests: built from a config with seeded random weights, in a fraction of a second.

Weights are drawn wide, so that labels and scores differ from token to token: a model whose every
token is "O" would let a broken decoder pass.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import processors as post_processors

TokenizerKind = Literal["wordpiece", "bpe", "unigram"]
Head = Literal["token-classification", "sequence-classification"]

ENTITY_LABELS = (
    "O",
    "B-PER",
    "I-PER",
    "B-ORG",
    "I-ORG",
    "B-LOC",
    "I-LOC",
    "B-MISC",
    "I-MISC",
)
SENTIMENT_LABELS = ("negative", "positive")

# What the tokenizers know; several scripts, so that not all of them become unknown.
CORPUS = (
    "Maria Nowak flew from Lisbon to San Francisco with Contoso Airlines on 12 March.",
    "The delivery was late, the box was crushed and nobody answered my three e-mails!",
    "I love this coffee machine; it's quiet, quick and cleans itself. Thank you, Anna-Lena.",
    "Could the team in São Paulo please refund order #48291? It was charged twice ($39.90).",
    "O'Brien & Sons Ltd. opened a new office near König-Ludwig-Straße in München last week.",
    "Worst experience ever: the app crashed, the agent hung up, and I'm still waiting.",
    "Доставка в Москву заняла три дня, спасибо Ивану Петрову.",
    "東京の田中さんは新しい電話をとても気に入っています。",
    "محمد يعيش في القاهرة ويعمل في شركة كبيرة",
    "Ελένη μένει στην Αθήνα και δουλεύει στη Θεσσαλονίκη.",
    "The quick brown fox jumps over the lazy dog while United Nations delegates watch.",
    "great 😀 fast 🚀 would buy again 👍🏽, naïve café jalapeño façade, u.s.a. wi-fi 24/7",
)
_ALPHABET = [chr(code) for code in range(33, 127)]

_BERT_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_ROBERTA_SPECIAL = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "cls_token": "<s>",
    "sep_token": "</s>",
}


def _pieces(words: Iterable[str], continuing: str = "") -> Counter[str]:
    """Count the parts of words, of at most six characters, the inner ones marked `continuing`."""
    pieces: Counter[str] = Counter()
    for word in words:
        for start, end in combinations(range(len(word) + 1), 2):
            if end - start <= 6:
                pieces[(continuing if start else "") + word[start:end]] += 1
    return pieces


def _chosen(pieces: Counter[str], alphabet: Iterable[str], room: int) -> list[str]:
    """Take the alphabet and what saves most; the trainers of tokenizers break ties at random."""
    best = sorted(pieces, key=lambda piece: (-pieces[piece] * len(piece), piece))
    return [*dict.fromkeys([*sorted(alphabet), *best])][:room]


def wordpiece_tokenizer(*, vocab_size: int = 800, lowercase: bool = True) -> Tokenizer:
    """A tokenizer as BERT's: its normaliser drops accents and control characters."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = [
        word
        for text in CORPUS
        for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))
    ]
    pieces = _pieces(words, "##")
    alphabet = {piece for piece in pieces if len(piece.removeprefix("##")) == 1}
    alphabet |= {f"{mark}{letter}" for letter in _ALPHABET for mark in ("", "##")}
    special = list(_BERT_SPECIAL.values())
    vocabulary = special + _chosen(pieces, alphabet, vocab_size - len(special))
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = post_processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))],
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def bpe_tokenizer(*, vocab_size: int = 500, trim_offsets: bool = True) -> Tokenizer:
    """A tokenizer as RoBERTa's; with trim_offsets=False a word's offsets include its space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(dict.fromkeys(_ROBERTA_SPECIAL.values())),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = post_processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=trim_offsets, add_prefix_space=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def unigram_tokenizer(*, vocab_size: int = 800) -> Tokenizer:
    """A tokenizer as XLM-RoBERTa's: SentencePiece Unigram, NFKC, metaspace."""
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    pre_tokenizer = pre_tokenizers.Metaspace()
    words = [
        word
        for text in CORPUS
        for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))
    ]
    pieces = _pieces(words)
    alphabet = {piece for piece in pieces if len(piece) == 1} | set(_ALPHABET)
    special = list(dict.fromkeys(_ROBERTA_SPECIAL.values()))
    chosen = _chosen(pieces, alphabet, vocab_size - len(special))
    scores = [(piece, math.log((pieces[piece] + 0.5) / pieces.total())) for piece in chosen]
    vocabulary = [(token, 0.0) for token in special] + scores
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=special.index("<unk>")))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = post_processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def tiny_model(
    folder: Path,
    *,
    tokenizer: TokenizerKind = "wordpiece",
    head: Head = "token-classification",
    labels: Sequence[str] | None = None,
    problem_type: str | None = None,
    max_position_embeddings: int | None = None,
    model_max_length: int | None = None,
    hidden_size: int = 16,
    layers: int = 2,
    seed: int = 0,
    backend: Tokenizer | None = None,
    weights: bool = True,
) -> Path:
    """Write a model and its tokenizer to `folder` as a Hub checkpoint looks, and return `folder`.

    Args:
        folder: Made if it is missing.
        tokenizer: "wordpiece" makes a BERT, "bpe" a RoBERTa, "unigram" an XLM-RoBERTa.
        head: The architecture on top.
        labels: In id order; by default CoNLL's nine, or negative and positive.
        problem_type: As config.json has it.
        max_position_embeddings: config.json's value. The RoBERTa kinds can read 2 tokens less.
            By default 512 tokens can be read.
        model_max_length: tokenizer_config.json's value; by default what the model can read.
        hidden_size: Of the encoder, with two attention heads.
        layers: Of the encoder.
        seed: Of the weights.
        backend: A tokenizer of one's own, instead of the one made of CORPUS.
        weights: False leaves model.safetensors out, which needs no torch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bert = tokenizer == "wordpiece"
    if backend is None:
        backend = {
            "wordpiece": wordpiece_tokenizer,
            "bpe": bpe_tokenizer,
            "unigram": unigram_tokenizer,
        }[tokenizer]()
    if labels is None:
        labels = ENTITY_LABELS if head == "token-classification" else SENTIMENT_LABELS
    reserved = 0 if bert else 2
    positions = max_position_embeddings or 512 + reserved
    special = _BERT_SPECIAL if bert else _ROBERTA_SPECIAL
    backend.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model_max_length or positions - reserved,
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]
            if bert
            else ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            **special,
        },
    )
    _write_json(folder / "special_tokens_map.json", special)
    family = {"wordpiece": "Bert", "bpe": "Roberta", "unigram": "XLMRoberta"}[tokenizer]
    suffix = "ForTokenClassification" if head == "token-classification" else None
    config: dict[str, Any] = {
        "architectures": [family + (suffix or "ForSequenceClassification")],
        "model_type": {"Bert": "bert", "Roberta": "roberta", "XLMRoberta": "xlm-roberta"}[family],
        "vocab_size": backend.get_vocab_size(),
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * hidden_size,
        "max_position_embeddings": positions,
        "type_vocab_size": 2 if bert else 1,
        "initializer_range": 0.5,
        "pad_token_id": backend.token_to_id(special["pad_token"]),
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    if problem_type is not None:
        config["problem_type"] = problem_type
    _write_json(folder / "config.json", config)
    if weights:
        _write_weights(folder, head, seed, backend, positions - reserved)
    return folder


def _write_weights(folder: Path, head: Head, seed: int, backend: Tokenizer, room: int) -> None:
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    auto: Any = (
        AutoModelForTokenClassification
        if head == "token-classification"
        else AutoModelForSequenceClassification
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(AutoConfig.from_pretrained(folder))
    model.eval()
    # Centre the logits over the corpus, or random weights give one label to nearly every token.
    with torch.no_grad():
        encodings = [torch.tensor([backend.encode(text).ids]) for text in CORPUS]
        logits = [model(input_ids=ids[:, :room]).logits.flatten(0, -2) for ids in encodings]
        last = getattr(model.classifier, "out_proj", model.classifier)
        last.bias -= torch.cat(logits).mean(dim=0)
    model.save_pretrained(folder, safe_serialization=True)


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
