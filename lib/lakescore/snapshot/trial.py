"""One pass of a new snapshot on the driver: what cannot be loaded or run is refused there."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lakescore.encoder import Encoder, load_tokenizer
from lakescore.errors import ModelError
from lakescore.text import windows
from lakescore.tokens import Tokenizer


def check_runs(folder: Path, labels: int, reference: str) -> None:
    """Load a checked folder as a worker will, and score two short texts.

    Its files alone cannot tell whether this transformers knows the architecture, whether the
    weights have the sizes that the configuration says, or whether each token has an embedding.

    Raises:
        ModelError: loading or running fails, or gives other labels than the configuration names.
    """
    try:
        _run(folder, labels)
    except ModelError as error:
        raise ModelError(f"{reference}: {error}") from error
    except Exception as error:  # a library's own, of any kind; no row's text is near
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        raise ModelError(
            f"{reference}: transformers cannot load or run it ({type(error).__name__}: {reason}); "
            "try it with transformers.pipeline, and save it again with the version that runs here"
        ) from error


def _logits(encoder: Encoder, tokenizer: Tokenizer, texts: list[str]) -> npt.NDArray[Any]:
    tokens = tokenizer.tokenize(texts)
    limit = min(tokenizer.max_length, encoder.max_length)
    size = min(8, limit - tokenizer.special_count)
    if size < 1:
        raise ModelError(
            f"its texts may have {limit} tokens, {tokenizer.special_count} special ones included; "
            "mend model_max_length in tokenizer_config.json"
        )
    (logits,) = encoder.score(
        tokenizer, tokens, windows(tokens.lengths, size=size, stride=0), top=False
    ).arrays
    return logits


def _run(folder: Path, labels: int) -> None:
    tokenizer = load_tokenizer(folder)
    encoder = Encoder(folder, device="cpu", dtype="float32")
    largest = max(tokenizer.backend.get_vocab(with_added_tokens=True).values(), default=0)
    rows = int(encoder.model.get_input_embeddings().num_embeddings)
    if largest >= rows:
        raise ModelError(
            f"its tokenizer has ids up to {largest} and the model embeds {rows} of them; call "
            "resize_token_embeddings and save it again, or take the model's own tokenizer"
        )
    short, both = (_logits(encoder, tokenizer, texts) for texts in (["a"], ["a", "a b c d"]))
    if not np.allclose(short, both[: len(short)], rtol=1e-2, atol=1e-3, equal_nan=True):
        raise ModelError(
            "it gives a text other scores beside a longer one than alone, as models without a pad "
            "token do; set pad_token_id in config.json to the id of the tokenizer's pad token"
        )
    if not np.isfinite(both).all():
        raise ModelError("its scores of two short texts are not finite; its weights are damaged")
    if both.shape[1] != labels:
        raise ModelError(
            f"it gives {both.shape[1]} values for {labels} labels; save the model again with its "
            "own head and id2label"
        )
