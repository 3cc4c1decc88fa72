"""Blocks of a collection as this process has opened them: each once, for as long as its manifest shows it.

A block that is damaged or of another version is passed over: its segments answer without it. `Pool.verify` reports it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from sharedrag.arena.attachment import Arena
from sharedrag.arena.block import Payload
from sharedrag.arena.manifest import Entry, Kind
from sharedrag.errors import PoolDamaged
from sharedrag.search.columns import Columns
from sharedrag.search.coverage import CoveredIndex
from sharedrag.search.terms import Terms
from sharedrag.segments.live import Part, View

_log = logging.getLogger("sharedrag")
_Opened = TypeVar("_Opened")


class Blocks:
    """The opened blocks of one collection. Safe to use from many threads: what two open at once is the same."""

    def __init__(self, arena: Arena, metric: str) -> None:
        """Start with none open."""
        self._arena = arena
        self._metric = metric
        self._opened: dict[int, Any] = {}

    def columns(self, part: Part) -> Columns | None:
        """The typed columns of a part's metadata; None where there are none yet."""
        found = part.blocks.get(Kind.COLUMNS)
        return None if found is None else self._open(*found, Columns.open)

    def terms(self, part: Part) -> Terms | None:
        """The postings of a part's texts; None where there are none yet."""
        found = part.blocks.get(Kind.TERMS)
        return None if found is None else self._open(*found, Terms.open)

    def indexes(self, view: View) -> list[CoveredIndex]:
        """The indexes whose segments are all in the view, the largest first; of what two cover, the first has it."""
        self._close_all_but(
            {entry.uid for _, entry in view.indexes}
            | {entry.uid for part in view.parts for _, entry in part.blocks.values()}
        )
        if not view.indexes:
            return []
        segments = {part.segment.uid: part for part in view.parts}
        usable = []
        for node, entry in sorted(view.indexes, key=lambda one: -one[1].rows):
            opened = self._open(node, entry, lambda payload: CoveredIndex(payload, segments, self._metric))
            if opened is not None and opened.fits(segments):
                usable.append(opened)
        return usable

    def after_fork_in_child(self) -> None:
        """Locks of our own."""
        for opened in self._opened.values():
            if isinstance(opened, CoveredIndex):
                opened.after_fork_in_child()

    def _close_all_but(self, uids: set[int]) -> None:
        """Let go of what the newest manifests do not show; who has an older view opens it again."""
        for uid in self._opened.keys() - uids:
            self._opened.pop(uid, None)

    def _open(self, node: int, entry: Entry, opener: Callable[[Payload], _Opened | None]) -> _Opened | None:
        if entry.uid in self._opened:
            known: _Opened | None = self._opened[entry.uid]
            return known
        try:
            opened = opener(self._arena.block(node, entry))
        except (PoolDamaged, ValueError, KeyError) as error:
            _log.warning("block %#x is not used: %s", entry.uid, error)
            opened = None
        self._opened[entry.uid] = opened
        return opened
