"""One background thread per handle: moves idle handles' pins on, and maintains the node when nobody else does."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING

from sharedrag.errors import PoolClosed, PoolReplaced, SharedRagError
from sharedrag.maintenance.budget import Budget

if TYPE_CHECKING:
    from sharedrag.pool import Pool

TICK_S = 0.2
_BACKOFF_S = 5.0
_WAITING_ROUND_S = 1.0  # while something retired waits for somebody's view
_IDLE_ROUND_S = 30.0  # a process that was killed leaves no mark that anything changed
_log = logging.getLogger("sharedrag")


class Keeper:
    """The thread; it holds its pool only weakly, so that a forgotten handle is closed like any other object."""

    def __init__(self, pool: Pool, cpu_share: float) -> None:
        """Start ticking; maintenance takes `cpu_share` of one core on average. With 0 there is none."""
        self._pool = weakref.ref(pool)
        self._budget = Budget(cpu_share) if cpu_share else None
        self._stop = threading.Event()
        self._seen: object = None
        self._next_round = 0.0
        self._idle_until = 0.0
        self._last_error = ""
        self._thread = threading.Thread(target=self._run, name="sharedrag-keeper", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(TICK_S):
            pool = self._pool()
            if pool is None:
                return
            try:
                self._tick(pool)
            except (PoolClosed, PoolReplaced):
                return
            except (SharedRagError, OSError) as error:
                self._next_round = time.monotonic() + _BACKOFF_S
                if str(error) != self._last_error:
                    self._last_error = str(error)
                    _log.warning("maintenance: %s", error)
            except Exception:  # noqa: BLE001 (a mistake of ours must be seen, and must not end the care for the pool)
                self._next_round = time.monotonic() + _BACKOFF_S
                _log.exception("maintenance failed")
            del pool

    def _tick(self, pool: Pool) -> None:
        pool.arena.look_at_path()
        pool.move_pins_on()
        pool.close_marked()
        if self._budget is None or not self._budget.in_credit() or time.monotonic() < self._next_round:
            return
        seen = pool.change_marker()
        if seen == self._seen and time.monotonic() < self._idle_until:
            return
        with self._budget.spending():
            report = pool.maintain(self._budget)
        if report.elected:
            self._idle_until = time.monotonic() + (_WAITING_ROUND_S if report.segments_waiting else _IDLE_ROUND_S)
            busy = report.segments_merged or report.segments_freed or report.segments_sealed or report.postponed
            self._seen = None if busy else seen
        else:
            self._next_round = time.monotonic() + 1.0  # somebody else is at it

    def stop(self) -> None:
        """Stop the thread and wait for the round it may be in."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=10.0)
