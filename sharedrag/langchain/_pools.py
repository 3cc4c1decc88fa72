"""What the adapters take for a pool."""

from __future__ import annotations

import os

from sharedrag import Pool
from sharedrag.pool import shared


def as_pool(pool: Pool | str | os.PathLike[str]) -> Pool:
    """The handle as it is, or the one that this process shares for a path; created there if there is none.

    Raises what `Pool.open` raises. A pool made here has the default capacity: to choose it, pass a `Pool`.
    """
    return pool if isinstance(pool, Pool) else shared(pool, create=True)
