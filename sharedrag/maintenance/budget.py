"""How much processor time maintenance may take in the background: a share of one core, saved up for a while."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_SAVED_MAX_S = 1.0  # so that rest is not followed by a long burst


class Budget:
    """A token bucket of one thread's processor time. It starts empty: a burst of writes comes before care for it.

    What is begun is finished, whatever it takes; it is paid for afterwards, by waiting.
    """

    def __init__(self, share: float) -> None:
        """`share` is that of one core, 0 to 1."""
        self._share = share
        self._credit_s = 0.0
        self._earned_at = time.monotonic()
        self._began_s = 0.0

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Charge the processor time that this thread takes inside."""
        self._began_s = time.thread_time()
        try:
            yield
        finally:
            self._credit_s -= time.thread_time() - self._began_s

    def in_credit(self) -> bool:
        """True if something is left to spend."""
        now = time.monotonic()
        self._credit_s = min(_SAVED_MAX_S, self._credit_s + self._share * (now - self._earned_at))
        self._earned_at = now
        return self._credit_s > 0

    def affords(self, cost_s: float) -> bool:
        """Whether work of about `cost_s` seconds may begin now, within `spending`."""
        return self._credit_s - (time.thread_time() - self._began_s) >= min(cost_s, _SAVED_MAX_S / 2)
