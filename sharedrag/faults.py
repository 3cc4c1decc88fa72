"""Named fault points: where a test may kill, stop or interrupt a process, to show what the others then see.

Off (the default), `hit` is None and the hot paths test one local variable. On, by the environment:

    SHAREDRAG_FAULT=put.row_written:kill        kill -9 at the first passage
    SHAREDRAG_FAULT=put.row_written:stop:3      SIGSTOP at the third passage
    SHAREDRAG_FAULT=manifest.published:raise    raise KeyboardInterrupt there
"""

from __future__ import annotations

import os
import signal
from typing import Protocol

POINTS = {
    "attach.locked": "the session slot is locked, nothing is stored in it",
    "attach.pinned": "the pin is stored, the root not yet read again",
    "lane.locked": "the lane is locked, its last holder's leavings are not yet repaired",
    "lane.epoch": "the segment's index is repaired, its epoch not yet raised",
    "put.intent": "the intent is stored, no key chosen",
    "put.row_written": "the row's columns are written, its id not yet linked",
    "put.linked": "the row's id is linked, the watermark not stored",
    "put.published": "the watermark is stored, the intent not cleared",
    "roll.locked": "the node lock is held, no space taken",
    "roll.reserved": "the new segment's memory is reserved, its header not written",
    "roll.initialised": "the new segment is whole, the manifest does not name it",
    "manifest.written": "the manifest is whole in its slot, the root is the old one",
    "manifest.published": "the root is stored, the node lock still held",
    "merge.building": "the manifest names the segment being built, nothing is copied",
    "merge.copied": "the merged segment is whole, the manifest does not show it",
    "merge.published": "sources are retired, the merged segment is live",
    "horizon.stored": "the horizon is stored, intents not yet read",
    "reclaim.fenced": "the fence is passed, pins not yet read",
    "reclaim.punching": "the manifest says what is being punched, nothing is",
    "reclaim.punched": "the memory is given back, the manifest does not say so",
    "drop.published": "the collection is out of a node's catalog",
    "block.building": "the manifest names the block being built, nothing is written",
    "block.written": "the block is whole, the manifest does not show it",
    "block.published": "the block is shown, what it replaces is retired",
    "deletions.reserved": "the deletion vectors' memory is reserved and written, the manifest does not name it",
}


class _Hit(Protocol):
    def __call__(self, reached: str, /) -> None: ...


def _arm(spec: str) -> _Hit:
    point, _, rest = spec.partition(":")
    action, _, nth = rest.partition(":")
    if point not in POINTS or action not in ("kill", "stop", "raise"):
        raise ValueError(f"SHAREDRAG_FAULT={spec!r}: want POINT:kill|stop|raise[:N], POINT one of {sorted(POINTS)}")
    left = int(nth or 1)

    def hit(reached: str) -> None:
        nonlocal left
        assert reached in POINTS, reached
        if reached != point:
            return
        left -= 1
        if left:
            return
        if action == "raise":
            raise KeyboardInterrupt(point)
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)

    return hit


hit: _Hit | None = _arm(os.environ["SHAREDRAG_FAULT"]) if os.environ.get("SHAREDRAG_FAULT") else None


def passing(point: str) -> None:
    """Pass a fault point on a path that is not hot."""
    if hit:
        hit(point)
