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
_REMEMBERED_S = 10.0
_TURN_S = 2e-3

_crowded_until = 0.0
_mine = threading.local()


def others_are_busy() -> bool:
    """Whether other threads of this process use the processor as soon as this one lets them; then they are to give way."""
    global _crowded_until
    since, before = time.perf_counter(), time.process_time()
    time.sleep(_LOOK_S)
    busy = time.process_time() - before > (time.perf_counter() - since) / 4
    if busy:
        _crowded_until = time.monotonic() + _REMEMBERED_S
    return busy


def give_way() -> None:
    """Let other threads run if some of them might starve and this one has had its turn. Call without holding a lock."""
    if not _crowded_until:
        return
    now = time.monotonic()
    if now < _crowded_until and now - getattr(_mine, "since", 0.0) > _TURN_S:
        time.sleep(1e-6)  # with the timer's slack some 60 us, long enough for another thread to wake up
        _mine.since = time.monotonic()
