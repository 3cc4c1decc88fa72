"""A new segment for a lane: how large, of what shape, and how it comes into the manifest.

Sizes grow fourfold from one extent to `Geometry.segment_size_max`, so that an idle collection costs little; a batch that
needs more gets a segment to its measure. Heaps are sized by what the last segment of the lane held per row.
"""

from __future__ import annotations

from dataclasses import replace

from sharedrag import faults
from sharedrag.arena import extents, manifest
from sharedrag.arena.attachment import Arena
from sharedrag.arena.extents import Purpose, Run
from sharedrag.arena.manifest import CollectionEntry, Entry, Kind, Manifest, State
from sharedrag.arena.row import ROWS_MAX
from sharedrag.arena.segment import DTYPES, HEADER_SIZE, HEAP_MAX, Segment, Shape, buckets_for
from sharedrag.errors import CollectionDropped, PoolFull, RecordTooLarge
from sharedrag.memory.layout import EXTENT_SIZE, Geometry
from sharedrag.segments.batch import Batch
from sharedrag.segments.lane import Lane, heap_needs

_GROWTH = 4
_FIRST_ROWS = 128
_MARGIN = 1.2  # room for rows that are longer than the last ones were on average
_PADDING = 64 * 16  # what aligning the columns may cost


def least_shape(batch: Batch, definition: CollectionEntry, path: str) -> Shape:
    """The smallest segment that holds the batch; raises `RecordTooLarge` when none could."""
    ids, texts, metadata = heap_needs(batch)
    rows = len(batch.ids)
    if max(ids, texts, metadata) > HEAP_MAX or rows > ROWS_MAX:
        raise RecordTooLarge(
            f"a batch of {rows:,} rows with {ids:,} + {texts:,} + {metadata:,} bytes of ids, texts and metadata",
            operation="put",
            path=path,
            hint=f"One batch holds up to {ROWS_MAX:,} rows and 2 GiB of each: split it",
        )
    return _shape(rows, definition, ids, texts, metadata)


def _shape(rows: int, definition: CollectionEntry, ids: int, texts: int, metadata: int) -> Shape:
    dtype = DTYPES[definition.dtype] if definition.dimension else 0
    return Shape(rows, buckets_for(rows), definition.dimension or 0, dtype, ids, texts, metadata)


def shape_for(size: int, batch: Batch, previous: Segment | None, definition: CollectionEntry, path: str) -> Shape:
    """The shape that fills `size` bytes for rows like those of the batch and of the lane's previous segment."""
    least = least_shape(batch, definition, path)
    rows_before = previous.watermark() if previous else 0
    averages = [need / len(batch.ids) for need in heap_needs(batch)]
    if previous and rows_before > len(batch.ids):
        held = (
            previous.id_offsets[rows_before],
            previous.text_offsets[rows_before],
            previous.metadata_offsets[rows_before],
        )
        averages = [max(batch_average, total / rows_before) for batch_average, total in zip(averages, held, strict=True)]
    averages = [average * _MARGIN for average in averages]
    empty = _shape(1, definition, 0, 0, 0)
    fixed = 2 + 8 * 5 + 4 * 3 + (4 + empty.dimension * (4 if empty.dtype == 1 else 2) if empty.dimension else 0)
    rows = min(ROWS_MAX, int((size - HEADER_SIZE - _PADDING - empty.vectors_step) / (fixed + sum(averages))))
    if rows > least.rows:
        heaps = [min(HEAP_MAX, max(need, int(rows * average))) for need, average in zip(least[4:], averages, strict=True)]
        roomy = _shape(rows, definition, *heaps)
        if roomy.size <= size:
            return _with_leftover(roomy, size)
    return _with_leftover(least, size)


def _with_leftover(shape: Shape, size: int) -> Shape:
    spare = size - shape.size
    heaps = {"text_bytes": shape.text_bytes, "metadata_bytes": shape.metadata_bytes, "id_bytes": shape.id_bytes}
    largest = max(heaps, key=lambda name: heaps[name])
    return shape._replace(**{largest: min(HEAP_MAX, heaps[largest] + spare // 64 * 64)})


def sealed(entry: Entry, segment: Segment) -> Entry:
    """The entry of a segment that is closed for good; raises `PoolDamaged`. REQUIRES: its lane."""
    rows = segment.watermark()
    segment.check_end(rows)
    shape = segment.shape
    used = shape.size - sum(
        room - held
        for room, held in (
            (shape.id_bytes, segment.id_offsets[rows]),
            (shape.text_bytes, segment.text_offsets[rows]),
            (shape.metadata_bytes, segment.metadata_offsets[rows]),
        )
    )
    first, last = (segment.key[0], segment.key[rows - 1]) if rows else (0, 0)
    return entry._replace(state=State.SEALED, rows=rows, key_min=first, key_max=last, size_used=used)


def wanted_extents(geometry: Geometry, least: Shape, previous_extents: int) -> int:
    """How many extents the next segment should have: room for a few rows like these, or four times the previous one."""
    first_bytes = HEADER_SIZE + (least.size - HEADER_SIZE) * max(1, _FIRST_ROWS // least.rows)
    grown = previous_extents * _GROWTH or -(-first_bytes // EXTENT_SIZE)
    return max(-(-least.size // EXTENT_SIZE), min(geometry.segment_size_max // EXTENT_SIZE, grown))


def _room_for(
    arena: Arena,
    current: Manifest,
    batch: Batch,
    definition: CollectionEntry,
    previous: Segment | None,
    previous_extents: int,
) -> tuple[Run, Shape]:
    """Extents for a new segment, with memory behind them, and its shape. REQUIRES: the node lock.

    Deletes go where puts may follow them. Only where there is no room for that they get a segment to their measure,
    without vectors, from what is kept back: in a full pool a delete must not cost as much as a record.
    Raises `PoolFull`, `RecordTooLarge`.
    """
    try:
        smallest, least = _least(arena, batch, definition)
        wanted = max(least, 0 if batch.only_deletes else wanted_extents(arena.geometry, smallest, previous_extents))
        run = extents.take(arena.region, current, arena.geometry, wanted, least, Purpose.PUT)
    except (PoolFull, RecordTooLarge):
        if not batch.only_deletes:
            raise
        definition, previous = replace(definition, dimension=None), None
        smallest, least = _least(arena, batch, definition)
        run = extents.take(arena.region, current, arena.geometry, least, least, Purpose.DELETE)
    return run, shape_for(run.extents * EXTENT_SIZE, batch, previous, definition, arena.path)


def _least(arena: Arena, batch: Batch, definition: CollectionEntry) -> tuple[Shape, int]:
    """The smallest segment for the batch, and its extents; raises `RecordTooLarge` if the node can never have them."""
    smallest = least_shape(batch, definition, arena.path)
    least = -(-smallest.size // EXTENT_SIZE)
    if least > arena.geometry.extents_per_node - arena.geometry.rescue_extents:
        raise RecordTooLarge(
            f"the batch needs {least * EXTENT_SIZE:,} bytes in one piece, the node has {arena.geometry.node_capacity:,}",
            operation="put",
            path=arena.path,
            hint="Split the batch, or make a pool of larger capacity",
        )
    return smallest, least


def roll(arena: Arena, lane: Lane, name: str, batch: Batch, previous: Segment | None) -> Segment:
    """Seal the lane's open segment of a collection and open one that has room for the batch.

    REQUIRES: the lane and the handle's write lock. Raises `PoolFull`, `RecordTooLarge`, `CollectionDropped`, `PoolBusy`.
    """
    geometry, region = arena.geometry, arena.region
    with arena.node_locked("roll") as current:
        assert current is not None
        faults.passing("roll.locked")
        definition = current.collection(name)
        if definition is None:
            raise CollectionDropped(
                f"collection {name!r} was dropped", operation="put", path=arena.path, hint="Declare it again"
            )
        changed: dict[int, Entry | None] = {}
        entry = current.by_uid.get(previous.uid) if previous else None
        if entry is not None and entry.state != State.OPEN:
            entry = None  # dropped with its collection: its memory may be gone
        if previous is not None and entry is not None:
            closed = sealed(entry, previous)
            changed[entry.uid] = (
                closed if closed.rows else closed._replace(state=State.RETIRED, retired_at=current.generation + 1)
            )
        run, shape = _room_for(arena, current, batch, definition, previous if entry else None, entry.extents if entry else 0)
        faults.passing("roll.reserved")
        size = run.extents * EXTENT_SIZE
        uid = current.node << manifest.UID_NODE_SHIFT | current.next_number
        offset = geometry.extent_offset(current.node, run.first)
        segment = Segment.create(region, offset, uid, lane.global_number, shape, size)
        faults.passing("roll.initialised")
        changed[uid] = Entry(
            uid,
            Kind.SEGMENT,
            State.OPEN,
            lane.global_number,
            definition.number,
            run.first,
            run.extents,
            0,
            0,
            0,
            0,
            shape.size,
        )
        arena.publish(current.with_entries(changed, next_number=current.next_number + 1))
    region.populate(offset, size)  # without the node lock, for which others wait
    return segment
