"""A model on one device: windows of tokens in, labels and scores out, in the memory there is."""

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lakescore.batching import bucket, pack
from lakescore.config import Dtype
from lakescore.device import is_out_of_memory, resolve_dtype
from lakescore.errors import ModelError
from lakescore.failpoints import forward
from lakescore.text import ErrorCode, RowError, Windows
from lakescore.tokens import Batch, Tokenizer, Tokens, collate

if TYPE_CHECKING:
    import torch

IntArray = npt.NDArray[np.int64]

# Tokens in one forward pass, padding included, where the job does not say: small batches stay in
# a CPU's caches, a GPU wants many. `make bench-encoder` shows others.
TOKEN_BUDGET = {"cpu": 1024, "cuda": 65_536}
MAX_ROWS = 4096
UNLIMITED = 1_000_000
_TRANSFORMERS = Lock()  # it may be imported, and make a model, in one thread at a time

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model says of some windows: an array or two of one row per target.

    A target is a token (token classification; all tokens of `Tokens`, in order) or a window
    (sequence classification). `arrays` is `(label, probability)` of the best label, or `(logits,)`
    of shape (targets, labels). Values of texts in `failed` mean nothing.
    """

    arrays: tuple[npt.NDArray[Any], ...]
    failed: dict[int, RowError]


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that one call of `Encoder.score` reads."""

    tokenizer: Tokenizer
    tokens: Tokens
    windows: Windows
    top: bool


def import_transformers() -> Any:
    """Import transformers, one thread at a time: it replaces itself in the middle of its import.

    Jobs that are threads of one driver begin at once; all but one would get what it was before.
    """
    with _TRANSFORMERS:
        import transformers
    return transformers


@contextmanager
def making_a_model() -> Iterator[None]:
    """Let transformers make a model, in one thread at a time, without a bar on the terminal.

    Meanwhile it changes how torch makes layers, for all threads: with two at once that stays so.
    """
    from transformers.utils import logging as bars

    with _TRANSFORMERS:
        shown = bars.is_progress_bar_enabled()
        bars.disable_progress_bar()
        try:
            yield
        finally:
            if shown:
                bars.enable_progress_bar()


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a snapshot's fast tokenizer, configured just as transformers' pipelines have it."""
    auto = import_transformers().AutoTokenizer
    tokenizer = auto.from_pretrained(str(folder), use_fast=True, trust_remote_code=False)
    limit = tokenizer.model_max_length  # null in some files: then the model's own counts
    return Tokenizer(
        tokenizer.backend_tokenizer,
        pad_id=tokenizer.pad_token_id,
        unknown_id=tokenizer.unk_token_id,
        max_length=UNLIMITED if limit is None else int(min(limit, UNLIMITED)),
        pads_left=tokenizer.padding_side == "left",
    )


class Encoder:
    """A snapshot's model, loaded on one device.

    `max_length` counts the tokens of one window, special ones included. `token_budget` shrinks
    for good when memory runs out.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str,
        dtype: Dtype,
        token_budget: int | None = None,
        threads: int | None = None,
    ) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self._folder = folder
        self.device = torch.device(device)
        self.dtype_name = resolve_dtype(dtype, self.device)
        try:
            self.model = self._load(self.dtype_name)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise ModelError(
                f"{self.device} has no memory left for the model in {self.dtype_name}; let fewer "
                "tasks share it (spark.task.resource.gpu.amount, spark.task.cpus)"
            ) from error
        self.is_token_model = _is_token_model(self.model.config)
        self.max_length = _max_positions(self.model)
        self.token_budget = token_budget or TOKEN_BUDGET.get(self.device.type, TOKEN_BUDGET["cuda"])
        self._exact: Any = None  # the model in float32, False where there is no memory for it

    def _load(self, dtype: str) -> Any:
        import torch

        transformers = import_transformers()
        # Its name and its default ("auto" since 5.0) differ between versions.
        version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
        dtype_argument = "dtype" if version >= (4, 56) else "torch_dtype"
        config = transformers.AutoConfig.from_pretrained(str(self._folder), trust_remote_code=False)
        auto = transformers.AutoModelForSequenceClassification
        if _is_token_model(config):
            auto = transformers.AutoModelForTokenClassification
        with making_a_model():
            model, info = auto.from_pretrained(
                str(self._folder),
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **{dtype_argument: torch.float32},
            )
        if missing := sorted(info["missing_keys"]):
            # transformers would fill them with random numbers, and only warn.
            raise ModelError(
                f"its weights lack {missing[0]} ({len(missing)} in all); save the fine-tuned "
                "model again, with its head"
            )
        return model.eval().to(self.device, getattr(torch, dtype))

    def score(self, tokenizer: Tokenizer, tokens: Tokens, windows: Windows, *, top: bool) -> Scores:
        """Run all windows; `top` asks for the best label and its probability instead of logits.

        Memory running out halves the batches, down to one window, whose text then fails alone.
        A text whose logits are not finite is run again in float32 before it fails.
        """
        request = Request(tokenizer, tokens, windows, top)
        if self.is_token_model:
            row_of_target = np.repeat(np.arange(len(tokens.lengths)), tokens.lengths)
        else:
            row_of_target = windows.row
        arrays = self._empty(len(row_of_target), top=top)
        failed: dict[int, RowError] = {}

        not_finite = self._run(self.model, request, np.arange(len(windows.row)), arrays, failed)
        rows = np.unique(row_of_target[not_finite])
        tried = self.dtype_name
        if len(rows) and tried != "float32" and (exact := self._in_float32()) is not None:
            tried += ", then in float32"
            again = np.flatnonzero(np.isin(windows.row, rows))
            not_finite = self._run(exact, request, again, arrays, failed)
            rows = np.unique(row_of_target[not_finite])
        for row in rows.tolist():
            detail = f"the model's logits are not finite (in {tried})"
            failed.setdefault(row, RowError(ErrorCode.NON_FINITE, detail))
        return Scores(arrays, failed)

    def _in_float32(self) -> Any:
        """Return the model in float32, loaded when first needed; None where it does not fit."""
        if self._exact is None:
            try:
                self._exact = self._load("float32")
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._exact = False
                log.warning("no memory on %s for the model in float32", self.device)
        return self._exact or None

    def _empty(self, targets: int, *, top: bool) -> tuple[npt.NDArray[Any], ...]:
        if top:
            return np.zeros(targets, np.int64), np.zeros(targets, np.float32)
        return (np.zeros((targets, int(self.model.config.num_labels)), np.float32),)

    def _run(
        self,
        model: Any,
        request: Request,
        chosen: IntArray,
        arrays: tuple[npt.NDArray[Any], ...],
        failed: dict[int, RowError],
    ) -> IntArray:
        """Write the results of the `chosen` windows into `arrays`; return targets not finite."""
        import torch

        results, targets = [], []
        for batch, members, found in self._passes(model, request, chosen, failed):
            results.append(found)
            targets.append(batch.target if self.is_token_model else members)
        if not results:
            return np.zeros(0, np.int64)
        # One copy for all batches: to copy after each would make a GPU wait for the host.
        finite, *columns = [torch.cat(c).cpu().numpy() for c in zip(*results, strict=True)]
        target = np.concatenate(targets)
        for array, column in zip(arrays, columns, strict=True):
            array[target] = column
        return np.asarray(target[~finite])

    def _passes(
        self, model: Any, request: Request, chosen: IntArray, failed: dict[int, RowError]
    ) -> "Iterator[tuple[Batch, IntArray, tuple[torch.Tensor, ...]]]":
        """Yield (batch, its windows, results); halve what does not fit, down to one window."""
        import torch

        few_shapes = self.device.type == "cpu"
        widths = request.windows.lengths + request.tokenizer.special_count
        if few_shapes:
            widths = np.minimum(bucket(widths), self.max_length)
        packs = pack(
            widths[chosen],
            max_tokens=self.token_budget,
            max_rows=MAX_ROWS,
            few_shapes=few_shapes,
        )
        waiting = deque(chosen[members] for members in packs)
        while waiting:
            members = waiting.popleft()
            width = int(widths[members].max())
            fitting = max(self.token_budget // width, 1)
            if len(members) > fitting:  # packed before memory ran out
                waiting.appendleft(members[fitting:])
                members = members[:fitting]
            batch = collate(
                request.tokenizer, request.tokens, request.windows, members, width=width
            )
            try:
                forward(width)
                with torch.inference_mode():
                    found = self._forward(model, batch, top=request.top)
            except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError
                if not is_out_of_memory(error):
                    raise
                size = batch.input_ids.size
            else:
                yield batch, members, found
                continue
            # Outside the handler, so that the exception no longer holds on to the tensors.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(members) == 1:
                detail = f"one window of {size} tokens does not fit on {self.device}"
                failed[int(request.windows.row[members[0]])] = RowError(
                    ErrorCode.OUT_OF_MEMORY, detail
                )
                continue
            self.token_budget = min(self.token_budget, max(size // 2, 1))
            log.warning(
                "out of memory on %s; now %d tokens a batch", self.device, self.token_budget
            )
            half = len(members) // 2
            waiting.extendleft((members[half:], members[:half]))

    def _forward(self, model: Any, batch: Batch, *, top: bool) -> "tuple[torch.Tensor, ...]":
        """Return (whether finite, logits) or (whether finite, label, probability) of targets."""
        inputs = {"input_ids": self._put(batch.input_ids)}
        if batch.attention_mask is not None:
            inputs["attention_mask"] = self._put(batch.attention_mask.astype(np.int64))
        if batch.type_ids is not None:
            inputs["token_type_ids"] = self._put(batch.type_ids)
        kept = self._put(batch.kept) if self.is_token_model else None
        logits: torch.Tensor = model(**inputs).logits
        if kept is not None:
            logits = logits.flatten(0, 1).index_select(0, kept)
        logits = logits.float()
        finite = logits.isfinite().all(-1)
        if not top:
            return finite, logits
        best = logits.softmax(-1).max(-1)
        return finite, best.indices, best.values

    def _put(self, values: npt.NDArray[Any]) -> "torch.Tensor":
        """Copy to the device; a GPU need not wait for it, nor the host for the GPU."""
        import torch

        tensor = torch.from_numpy(values)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def _is_token_model(config: Any) -> bool:
    return str((config.architectures or [""])[0]).endswith("ForTokenClassification")


def _max_positions(model: Any) -> int:
    """Return how many tokens the model's positions allow.

    A table of positions with a padding index (RoBERTa and its kin) is used from just after it.
    """
    limit = int(getattr(model.config, "max_position_embeddings", None) or UNLIMITED)
    if limit < 1:  # XLNet, whose positions are relative, says -1
        limit = UNLIMITED
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            return int(module.num_embeddings - module.padding_idx - 1)
    return limit
