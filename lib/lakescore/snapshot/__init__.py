"""Models made immutable: resolved once to checked files with a fingerprint; unsafe ones refused."""

from lakescore.snapshot.store import (
    MANIFEST,
    Snapshot,
    default_cache,
    fingerprint_of,
    open_snapshot,
    resolve,
    resolve_any,
)

__all__ = [
    "MANIFEST",
    "Snapshot",
    "default_cache",
    "fingerprint_of",
    "open_snapshot",
    "resolve",
    "resolve_any",
]
