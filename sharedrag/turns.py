"""Threads of one process take turns, also where CPython would let one of them run on.

A thread that wants the interpreter's lock waits 5 ms undisturbed before it asks the holder to let go. A holder that lets go
by itself for a microsecond more often than that, as any call into NumPy or the system does, wakes the waiting thread each
time, is back before that has woken up, and its 5 ms begin again: threads were seen to wait for whole seconds
(https://bugs.python.org/issue7946 is of the same kind). Where a thread has more than a moment's work it looks whether others
are busy; then, for a while, calls that could go on like that sleep for a moment every other millisecond.
"""

from __future__ import annotations

import threading
import time

_LOOK_S = 300e-6  # a thread that waits for the interpreter's lock needs 50 to 150 us to wake up
_STARVED_S = 10e-3  # two turns of another thread
_REMEMBERED_S = 10.0
_TURN_S = 2e-3

_crowded_until = 0.0
_starved_until = 0.0
_mine = threading.local()


class Turn:
    """A piece of work of this thread, to see afterwards whether other threads of the process let it have the interpreter."""

    def __init__(self) -> None:
        self._process, self._thread = time.process_time(), time.thread_time()

    def others(self) -> float:
        """Seconds of processor time that other threads of this process had since it began."""
        return time.process_time() - self._process - (time.thread_time() - self._thread)

    def end(self) -> None:
        """Remember it where others had far more than this thread: then a look that shows nothing is not to be trusted."""
        global _crowded_until, _starved_until
        if self.others() > max(_STARVED_S, 2 * (time.thread_time() - self._thread)):
            _crowded_until = _starved_until = time.monotonic() + _REMEMBERED_S


def others_are_busy() -> bool:
    """Whether other threads of this process use the processor as soon as this one lets them; then they are to give way."""
    global _crowded_until
    if time.monotonic() < _starved_until:
        return True
    busy = _look()
    if busy:
        _crowded_until = time.monotonic() + _REMEMBERED_S
    return busy


def _look() -> bool:
    """Let them for a moment. On a crowded machine another thread may not wake up within it; then this shows nothing."""
    turn = Turn()
    time.sleep(_LOOK_S)
    return turn.others() > _LOOK_S / 4


def give_way() -> None:
    """Let other threads run if some of them might starve and this one has had its turn. Call without holding a lock."""
    if not _crowded_until:
        return
    now = time.monotonic()
    if now < _crowded_until and now - getattr(_mine, "since", 0.0) > _TURN_S:
        time.sleep(1e-6)  # with the timer's slack some 60 us, long enough for another thread to wake up
        _mine.since = time.monotonic()
