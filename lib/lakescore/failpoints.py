"""Named steps at which a test lets a run fail; they cost one comparison where none is named.

    LAKESCORE_FAILPOINT=step[:nth[:raise]]  kill this process group when the step is reached for
                                            the nth time (the first, if not given), or raise

Nothing but a test sets them.
"""

import os
import signal
from collections import Counter

_WANTED = os.environ.get("LAKESCORE_FAILPOINT", "")
_TIMES: Counter[str] = Counter()


def reached(step: str) -> None:
    """Say that a run is at a step.

    Raises:
        RuntimeError: a test wants it.
    """
    if not _WANTED:
        return
    name, nth, action = (*_WANTED.split(":"), "", "")[:3]
    _TIMES[step] += 1
    if name == step and _TIMES[step] == int(nth or 1):
        if action == "raise":
            raise RuntimeError(f"failpoint {step}")
        os.killpg(os.getpgid(0), signal.SIGKILL)
