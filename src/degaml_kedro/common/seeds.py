"""Seeds that depend on names, not on the order in which things run."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: str) -> int:
    """A seed of its own for every name under one run seed.

    Nodes may run in any order, in threads or in processes: each draws from its own stream, so the numbers stay.

    Args:
        seed: the run's seed.
        *names: what the seed is for, from the general to the special: a task, then a step.

    Returns:
        An integer in [0, 2^63).

    Example:
        >>> derive_seed(999, "capitals", "split") == derive_seed(999, "capitals", "split")
        True
        >>> derive_seed(999, "capitals", "split") == derive_seed(999, "capitals", "train")
        False
    """
    digest = hashlib.sha256()
    for part in (str(seed), *names):
        encoded = part.encode("utf-8")
        # the length keeps ("ab", "c") apart from ("a", "bc")
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return int.from_bytes(digest.digest()[:8], "big") >> 1
