"""Handing out a node's extents: first fit among the gaps between the entries of its manifest."""

from __future__ import annotations

import enum
from typing import NamedTuple

from sharedrag.arena.manifest import Manifest
from sharedrag.errors import PoolFull
from sharedrag.memory.layout import EXTENT_SIZE, HUGE_PAGE, Geometry
from sharedrag.memory.region import Region


class Purpose(enum.Enum):
    """What extents are wanted for: when space runs out, each leaves what the next needs to make some."""

    PUT = "put"
    DELETE = "delete"  # may take half of what is kept back: maintenance needs the rest to make room for more deletes
    BLOCK = "block"  # deletion vectors, columns, postings, indexes: the same; they can be done without
    MERGE = "merge"  # may take all


class Run(NamedTuple):
    """Consecutive extents of one node."""

    first: int
    extents: int


def gaps(manifest: Manifest, geometry: Geometry) -> list[Run]:
    """The node's free runs, in file order; the rescue extents are not among them."""
    end = geometry.extents_per_node - geometry.rescue_extents
    return _gaps_between(manifest, 0, end)


def _gaps_between(manifest: Manifest, start: int, end: int) -> list[Run]:
    found: list[Run] = []
    at = start
    for first, extents in sorted((entry.first_extent, entry.extents) for entry in manifest.entries):
        if first > at and at < end:
            found.append(Run(at, min(first, end) - at))
        at = max(at, first + extents)
    if at < end:
        found.append(Run(at, end - at))
    return found


def free_extents(manifest: Manifest, geometry: Geometry) -> int:
    """Free extents, those kept back included, the rescue extents not."""
    return sum(gap.extents for gap in gaps(manifest, geometry))


def choose(manifest: Manifest, geometry: Geometry, wanted: int, least: int, purpose: Purpose, path: str) -> Run:
    """A run of between `least` and `wanted` extents, as near to `wanted` as there is room for.

    Raises `PoolFull` with the figures.
    """
    assert 0 < least <= wanted
    free = gaps(manifest, geometry)
    total = sum(gap.extents for gap in free)
    kept = min(total, _kept_back_from(purpose, geometry))
    allowed = total - kept
    if allowed >= least:
        want = min(wanted, allowed)
        for gap in free:
            if gap.extents >= want:
                return Run(gap.first + _to_huge_page(gap, want, manifest.node, geometry), want)
        largest = max(free, key=lambda gap: gap.extents)
        if largest.extents >= least:
            return Run(largest.first, min(largest.extents, want))
    raise PoolFull(
        f"{least * EXTENT_SIZE:,} bytes wanted in one piece; of the node's {geometry.node_capacity:,} bytes "
        f"{allowed * EXTENT_SIZE:,} are free"
        + (f", in pieces of at most {max(gap.extents for gap in free) * EXTENT_SIZE:,}" if allowed >= least else "")
        + (f", and {kept * EXTENT_SIZE:,} more kept back to make room with" if kept else ""),
        operation="allocate",
        path=path,
        hint="Delete records or drop a collection and run `sharedrag maintain`, close readers that hold old views "
        "(`sharedrag info`), or make a pool of larger capacity",
    )


def _to_huge_page(gap: Run, want: int, node: int, geometry: Geometry) -> int:
    """Extents to leave out so that a large run begins where a huge page does; 0 where the gap has no room for that."""
    missing = -geometry.extent_offset(node, gap.first) % HUGE_PAGE // EXTENT_SIZE
    return missing if want * EXTENT_SIZE >= HUGE_PAGE and gap.extents - missing >= want else 0


def _kept_back_from(purpose: Purpose, geometry: Geometry) -> int:
    """Extents that stay free although somebody wants them for this."""
    shares = {Purpose.PUT: 1.0, Purpose.DELETE: 0.5, Purpose.BLOCK: 0.5, Purpose.MERGE: 0.0}
    return int(geometry.extents_kept_back * shares[purpose])


def take(region: Region, manifest: Manifest, geometry: Geometry, wanted: int, least: int, purpose: Purpose) -> Run:
    """Choose a run and put memory behind it. REQUIRES: the node's lock.

    Raises `PoolFull`. A run whose memory cannot be had is tried smaller, down to `least`. Then a merge falls back
    on the rescue extents, and so does a delete where memory ran out rather than the node's budget.
    """
    node = manifest.node
    may_be_rescued = purpose is Purpose.MERGE
    try:
        run = choose(manifest, geometry, wanted, least, purpose, region.path)
        may_be_rescued = purpose in (Purpose.MERGE, Purpose.DELETE)
        try:
            _reserve(region, geometry, node, run, purpose.value)
        except PoolFull:
            if run.extents == least:
                raise
            run = Run(run.first, least)
            _reserve(region, geometry, node, run, purpose.value)
        return run
    except PoolFull:
        start = geometry.extents_per_node - geometry.rescue_extents
        spare = [gap for gap in _gaps_between(manifest, start, geometry.extents_per_node) if gap.extents >= least]
        if not (may_be_rescued and spare):
            raise
        run = Run(spare[0].first, least)
        offset = geometry.extent_offset(node, run.first)
        region.bytes[offset : offset + least * EXTENT_SIZE] = bytes(least * EXTENT_SIZE)
        return run


def _reserve(region: Region, geometry: Geometry, node: int, run: Run, operation: str) -> None:
    offset, length = geometry.extent_offset(node, run.first), run.extents * EXTENT_SIZE
    region.punch(offset, length)  # what a process killed here left behind counts against nobody
    try:
        region.reserve(offset, length, operation=operation)
    except PoolFull:
        region.punch(offset, length)  # tmpfs keeps the pages it got before it ran out
        raise


def is_rescue(geometry: Geometry, first_extent: int) -> bool:
    """True for extents whose memory is never given back."""
    return first_extent >= geometry.extents_per_node - geometry.rescue_extents
