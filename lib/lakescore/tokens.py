"""Texts to flat arrays of tokens, and tokens to what a model reads: no Python loop over tokens."""

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lakescore.failpoints import tokenizing
from lakescore.text import Windows

if TYPE_CHECKING:
    import tokenizers

IntArray = npt.NDArray[np.int64]
SPACE = ord(" ")


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of n texts, one after the other, without the model's special tokens.

    `ids`, `starts`, `ends` and `is_word_start` have one value per token; offsets count code
    points of the text. Text i owns tokens `bounds[i]` to `bounds[i + 1]`. `failed` names the
    texts that the tokenizer could not read (they have no tokens) and the kind of its error.
    """

    ids: npt.NDArray[np.int64]
    starts: IntArray
    ends: IntArray
    is_word_start: npt.NDArray[np.bool_]
    bounds: IntArray
    failed: dict[int, str]

    @property
    def lengths(self) -> IntArray:
        """Tokens in each text."""
        return np.diff(self.bounds)


class Tokenizer:
    """A fast tokenizer with what a batch needs to know of it.

    `backend` is the tokenizer as transformers configures it (`PreTrainedTokenizerFast.
    backend_tokenizer`), so that it splits just as a pipeline's does. It must not be shared with
    other code: its own truncation and padding are switched off here.
    """

    def __init__(
        self,
        backend: "tokenizers.Tokenizer",
        *,
        pad_id: int,
        unknown_id: int | None,
        max_length: int,
        pads_left: bool = False,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.pad_id = pad_id
        self.pads_left = pads_left
        self.max_length = max_length
        self._unknown_id = unknown_id
        probe = backend.encode("a", add_special_tokens=True)
        special = np.array(probe.special_tokens_mask, bool)
        content = np.flatnonzero(~special)
        first, last = (content[0], content[-1]) if len(content) else (len(special), len(special))
        ids, types = np.array(probe.ids, np.int64), np.array(probe.type_ids, np.int64)
        self.prefix, self.suffix = ids[:first], ids[last + 1 :]
        self.prefix_types, self.suffix_types = types[:first], types[last + 1 :]
        # A tokenizer that marks sub-words ("##ing") tells where words begin by the length of a
        # token against that of its source; for others transformers' pipeline looks for a space.
        self._marks_subwords = bool(getattr(backend.model, "continuing_subword_prefix", None))
        self._token_lengths = self._lengths_of_vocabulary() if self._marks_subwords else None

    @property
    def special_count(self) -> int:
        """Special tokens that each window gains."""
        return len(self.prefix) + len(self.suffix)

    def _lengths_of_vocabulary(self) -> IntArray:
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        lengths = np.zeros(max(vocabulary.values(), default=0) + 1, np.int64)
        for token, number in vocabulary.items():
            lengths[number] = len(token)
        return lengths

    def tokenize(self, texts: list[str]) -> Tokens:
        """Split `texts` into tokens; a text that the tokenizer refuses stands in `failed`."""
        failed: dict[int, str] = {}
        try:
            tokenizing(texts)
            encodings = self.backend.encode_batch(texts, add_special_tokens=False)
        except BaseException as error:
            _reraise_unless_of_a_text(error)
            # Find whose fault it is.
            encodings = [self._encode_alone(i, text, failed) for i, text in enumerate(texts)]
        bounds = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(encoding) for encoding in encodings], out=bounds[1:])
        total = int(bounds[-1])
        ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int64, total)
        pairs = chain.from_iterable(chain.from_iterable(e.offsets for e in encodings))
        offsets = np.fromiter(pairs, np.int64, 2 * total).reshape(total, 2)
        starts, ends = np.ascontiguousarray(offsets[:, 0]), np.ascontiguousarray(offsets[:, 1])
        is_word_start = self._word_starts(texts, ids, starts, ends, bounds)
        return Tokens(ids, starts, ends, is_word_start, bounds, failed)

    def _encode_alone(self, position: int, text: str, failed: dict[int, str]) -> Any:
        try:
            tokenizing([text])
            return self.backend.encode(text, add_special_tokens=False)
        except BaseException as error:
            _reraise_unless_of_a_text(error)
            # The message may quote the text, so only its kind.
            failed[position] = type(error).__name__
            return self.backend.encode("", add_special_tokens=False)

    def _word_starts(
        self, texts: list[str], ids: IntArray, starts: IntArray, ends: IntArray, bounds: IntArray
    ) -> npt.NDArray[np.bool_]:
        """Say where words begin, by the rules of transformers' TokenClassificationPipeline."""
        if self._token_lengths is not None:
            result = self._token_lengths[ids] == ends - starts
        else:
            characters = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
            text_lengths = np.array([len(text) for text in texts], np.int64)
            text_begin = np.cumsum(text_lengths) - text_lengths
            is_space = np.append(characters == SPACE, [False])
            row = np.repeat(np.arange(len(texts)), np.diff(bounds))
            inside = starts < text_lengths[row]
            position = text_begin[row] + starts
            result = (starts == 0) | is_space[position - 1] | (inside & is_space[position])
        if self._unknown_id is not None:
            result |= ids == self._unknown_id
        result[bounds[:-1][np.diff(bounds) > 0]] = True
        return np.asarray(result, np.bool_)


def _reraise_unless_of_a_text(error: BaseException) -> None:
    """Let pass what the tokenizers library raises about a text: Exception, or Rust's own panic."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows side by side, as a model reads them: b windows, the longest of l tokens.

    `input_ids`, `attention_mask` and `type_ids` are (b, l); `type_ids` is None where they are all
    zero, `attention_mask` where nothing is padded. `kept` are the positions in the flattened
    (b * l) output whose result is kept, `target` the tokens (in `Tokens`) that they belong to.
    """

    input_ids: IntArray
    attention_mask: npt.NDArray[np.bool_] | None
    type_ids: IntArray | None
    kept: IntArray
    target: IntArray


def collate(
    tokenizer: Tokenizer, tokens: Tokens, windows: Windows, chosen: IntArray, *, width: int
) -> Batch:
    """Lay the `chosen` windows side by side, with special tokens, padded to `width` tokens."""
    prefix, suffix = tokenizer.prefix, tokenizer.suffix
    content = windows.lengths[chosen]
    padding = width - content - tokenizer.special_count
    margin = padding if tokenizer.pads_left else np.zeros_like(padding)
    # Where each cell stands in its window's own tokens: negative in the prefix, and so on.
    place = np.arange(width) - (margin + len(prefix))[:, None]
    is_content = (place >= 0) & (place < content[:, None])
    source = (tokens.bounds[windows.row[chosen]] + windows.begin[chosen])[:, None] + place

    input_ids = np.full(place.shape, tokenizer.pad_id, np.int64)
    input_ids[is_content] = tokens.ids[source[is_content]]
    type_ids = np.zeros_like(input_ids)
    each = np.arange(len(chosen))
    for nth, (number, kind) in enumerate(zip(prefix, tokenizer.prefix_types, strict=True)):
        input_ids[each, margin + nth] = number
        type_ids[each, margin + nth] = kind
    after = margin + len(prefix) + content
    for nth, (number, kind) in enumerate(zip(suffix, tokenizer.suffix_types, strict=True)):
        input_ids[each, after + nth] = number
        type_ids[each, after + nth] = kind

    is_real = (place >= -len(prefix)) & (place < (content + len(suffix))[:, None])
    first_kept = (windows.keep_begin - windows.begin)[chosen][:, None]
    last_kept = (windows.keep_end - windows.begin)[chosen][:, None]
    is_kept = is_content & (place >= first_kept) & (place < last_kept)
    return Batch(
        input_ids,
        None if is_real.all() else is_real,
        type_ids if type_ids.any() else None,
        np.flatnonzero(is_kept),
        source[is_kept],
    )
