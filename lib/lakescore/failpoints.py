"""Faults that tests order by environment variables; where none is set they cost a comparison.

LAKESCORE_FAILPOINT=step[:nth[:raise]]   kill this process group when a run reaches the step
for the nth time (1 if not given), or raise there
LAKESCORE_POISON=marker                  kill the process that tokenizes a text with the marker
LAKESCORE_TOKENIZER_ERROR=marker         let the tokenizer refuse such a text
LAKESCORE_OUT_OF_MEMORY_FROM=tokens      let memory run out in windows of so many tokens
"""

import os
import signal
from collections import Counter
from collections.abc import Iterable

_POISON = os.environ.get("LAKESCORE_POISON", "")
_REFUSED = os.environ.get("LAKESCORE_TOKENIZER_ERROR", "")
_TOO_WIDE = int(os.environ.get("LAKESCORE_OUT_OF_MEMORY_FROM", "0"))
# As on an object store: two runs of a job can be at it at once; and, where a test sees to it that
# commits are atomic, they do not wait for each other.
UNLOCKED = False
UNLOCKED_COMMITS = False
_TIMES: Counter[str] = Counter()
_STEP = ""


def order(failpoint: str) -> None:
    """Order a fault from now on, as LAKESCORE_FAILPOINT does; none by an empty text."""
    global _STEP
    _STEP = failpoint
    _TIMES.clear()


order(os.environ.get("LAKESCORE_FAILPOINT", ""))


def reached(step: str) -> None:
    """Say that a run is at a step.

    Raises:
        RuntimeError: a test wants it.
    """
    if not _STEP:
        return
    name, nth, action = (*_STEP.split(":"), "", "")[:3]
    _TIMES[step] += 1
    if name == step and _TIMES[step] == int(nth or 1):
        if action == "raise":
            raise RuntimeError(f"failpoint {step}")
        os.killpg(os.getpgid(0), signal.SIGKILL)  # with the driver's JVM


def tokenizing(texts: Iterable[str]) -> None:
    """Say that these texts are about to be tokenized.

    Raises:
        RuntimeError: a test wants the tokenizer to refuse one of them.
    """
    if _POISON and any(_POISON in text for text in texts):
        os.kill(os.getpid(), signal.SIGKILL)
    if _REFUSED and any(_REFUSED in text for text in texts):
        raise RuntimeError("failpoint in the tokenizer")


def forward(width: int) -> None:
    """Say that windows of `width` tokens are about to go through a model.

    Raises:
        MemoryError: a test wants it.
    """
    if _TOO_WIDE and width >= _TOO_WIDE:
        raise MemoryError("failpoint in the forward pass")
