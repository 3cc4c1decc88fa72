"""Looking at every byte that decides something: all that is visible, against its checksums, links and order."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from sharedrag.arena import block, manifest
from sharedrag.arena.attachment import Arena
from sharedrag.arena.manifest import Entry, Kind
from sharedrag.arena.row import HAS_VECTOR, ROW_BITS, ROW_MASK, hash31
from sharedrag.arena.segment import Segment
from sharedrag.errors import PoolDamaged
from sharedrag.info import Problem, VerifyReport
from sharedrag.memory import layout, order, superblock
from sharedrag.memory.layout import EXTENT_SIZE
from sharedrag.segments import deletions

_PROBLEMS_MAX = 1000
_PROGRESS_ROWS = 10_000
Progress = Callable[[int, int], None]


def verify(arena: Arena, progress: Progress | None = None) -> VerifyReport:
    """Check the pool that `arena` is attached to; rows that are written meanwhile are left out."""
    report = VerifyReport(path=arena.path)
    started = time.perf_counter()
    snapshot = arena.refresh()
    _verify_what_is_kept(arena, report)
    visible = [(one.node, entry) for one in snapshot.manifests for entry in one.entries if entry.visible]
    rows = {entry.uid: _rows(arena, node, entry, report) for node, entry in visible if entry.kind == Kind.SEGMENT}
    total = sum(known or 0 for known in rows.values())
    for node, entry in visible:
        try:
            if entry.kind == Kind.DELETIONS:
                offset = arena.geometry.extent_offset(node, entry.first_extent)
                deletions.decode(arena.region, offset, entry.extents * EXTENT_SIZE)
            elif entry.kind != Kind.SEGMENT:
                offset = arena.geometry.extent_offset(node, entry.first_extent)
                block.read(arena.region, offset, entry.extents * EXTENT_SIZE, entry.kind, entry.uid)
            elif (known := rows[entry.uid]) is not None:
                _verify_segment(arena.segment(node, entry), known, report, progress, total)
        except PoolDamaged as error:
            _note(report, error)
        report.segments += entry.kind == Kind.SEGMENT
    _verify_sessions(arena, report)
    report.seconds = time.perf_counter() - started
    return report


def _verify_what_is_kept(arena: Arena, report: VerifyReport) -> None:
    """What a handle reads once and keeps: as it is now, not as it was when we attached."""
    head = superblock.encode(arena.geometry)
    if arena.region.bytes[: len(head)] != head:
        hint = "This handle knows better and goes on; restore the pool from a copy before anybody opens it anew"
        _note(report, PoolDamaged("the superblock is not the one that was opened", offset=0, hint=hint))
    for node in range(arena.geometry.nodes):
        try:
            manifest.load(arena.region, arena.geometry, node)
        except PoolDamaged as error:
            _note(report, error)


def _note(report: VerifyReport, error: PoolDamaged) -> None:
    advice = error.hint if error.hint != PoolDamaged.HINT else "Restore the pool from a copy, or delete the records it names"
    problem = Problem(offset=error.offset, what=error.what, advice=advice)
    if len(report.problems) < _PROBLEMS_MAX and problem not in report.problems[-10:]:
        report.problems.append(problem)


def _rows(arena: Arena, node: int, entry: Entry, report: VerifyReport) -> int | None:
    try:
        kept = arena.segment(node, entry)
        segment = Segment(arena.region, kept.offset, entry.uid, entry.extents * EXTENT_SIZE)  # reads its header again
        rows = segment.watermark()
        if entry.rows and rows != entry.rows:
            raise PoolDamaged(
                f"segment {entry.uid:#x} was sealed with {entry.rows} rows, its watermark says {rows}",
                offset=segment.watermark_index << 3,
                operation="verify",
                path=arena.path,
            )
    except PoolDamaged as error:
        _note(report, error)
        return None
    return rows


def _verify_segment(segment: Segment, rows: int, report: VerifyReport, progress: Progress | None, total: int) -> None:
    for column in ("id", "text", "metadata"):
        segment.string_offsets(column, rows)
    keys = segment.key_array[:rows]
    if not (keys[1:] > keys[:-1]).all():
        _note(
            report,
            segment.damaged("order keys do not increase", "key", int(np.flatnonzero(keys[1:] <= keys[:-1])[0]) + 1),
        )
    _verify_links(segment, rows, report)
    for row in range(rows):
        try:
            raw = segment.read(row)
            hashed = hash31(raw.id)
            if (segment.link[row] & order.VALUE_MASK) >> ROW_BITS != hashed or segment.lookup(
                raw.id, hashed, row + 1
            ) != row:
                raise segment.damaged("the row cannot be found by its id", "link", row)
            if raw.flags & HAS_VECTOR and not np.isfinite(segment.vectors_array[row]).all():
                raise segment.damaged("the vector is not finite", "vectors", row, segment.vector_width)
        except PoolDamaged as error:
            _note(report, error)
        report.rows += 1
        if progress and report.rows % _PROGRESS_ROWS == 0:
            progress(report.rows, total)


def _verify_links(segment: Segment, rows: int, report: VerifyReport) -> None:
    for name, words in (("heads", segment.heads_array), ("link", segment.link_array[:rows])):
        bad = np.flatnonzero(~order.are_checked(words))
        for at in bad[:10].tolist():
            _note(report, segment.damaged("an index word fails its check", name, at))
    heads = (segment.heads_array & ROW_MASK).astype(np.int64)
    if int(heads.max(initial=0)) > segment.shape.rows:
        _note(report, segment.damaged("a bucket leads beyond the segment", "heads", int(heads.argmax())))


def _verify_sessions(arena: Arena, report: VerifyReport) -> None:
    geometry = arena.geometry
    for node in range(geometry.nodes):
        for slot in range(layout.SESSIONS_PER_NODE):
            at = geometry.session_offset(node, slot) + layout.SESSION_PINS
            for other in range(layout.NODES_MAX):
                word = arena.region.words[(at >> 3) + other]
                if word and not order.is_checked(word):
                    error = PoolDamaged(
                        f"a pin of session {slot} of node {node} fails its check",
                        offset=at + 8 * other,
                        hint="Nothing is lost, but memory is kept back while that process lives: restart it",
                    )
                    _note(report, error)
