"""A collection: put, get, delete, search and scan over all lanes' segments of all nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from sharedrag import turns
from sharedrag.arena.manifest import CollectionEntry
from sharedrag.arena.row import HAS_VECTOR, RawRow, hash31
from sharedrag.arena.segment import Segment
from sharedrag.errors import InvalidFilter, InvalidRecord
from sharedrag.filters import Filter, is_timed, parse
from sharedrag.maintenance import purge
from sharedrag.search import feed, fusion, knn, lexical, listing
from sharedrag.search import scan as scans
from sharedrag.search.blocks import Blocks
from sharedrag.search.masks import Admitted, Masks
from sharedrag.search.planner import Planner
from sharedrag.segments import batch
from sharedrag.segments.live import LiveRows, Part, View

_new = tuple.__new__  # half the price of calling a NamedTuple
_parsed = orjson.loads

if TYPE_CHECKING:
    from sharedrag.pool import Pool


@dataclass(frozen=True, slots=True)
class Record:
    """A stored record; `vector` is (dimension,) float32 as it was given, None if it has none."""

    id: str
    text: str | None
    metadata: dict[str, Any]
    created: datetime
    vector: npt.NDArray[np.float32] | None = None


class Hit(NamedTuple):
    """A found record; a higher `score` is better under every metric."""

    id: str
    score: float
    text: str | None
    metadata: dict[str, Any]
    created: datetime


class Change(NamedTuple):
    """Something new: a record, or None for a deleted one; `key` is its order key."""

    id: str
    key: int
    record: Record | None


class Changes(NamedTuple):
    """What is new, in the order of its keys; the place to go on from; whether a limit left some out.

    `live` is how many records match as of the same moment, None if nothing is new. A tombstone may have been cleared away
    before anybody asked: who keeps a copy compares its size with `live`, and starts over from None where they differ.
    """

    changes: list[Change]
    place: str
    more: bool
    live: int | None


class Collection:
    """Made by `Pool.collection`. One object may be used by many threads, and crosses `fork` and pickling."""

    def __init__(self, pool: Pool, definition: CollectionEntry) -> None:
        """Use `Pool.collection` instead."""
        self.pool = pool
        self.name = definition.name
        self.dimension = definition.dimension
        self.metric = definition.metric
        self.dtype = definition.dtype
        self.embedding_model = definition.embedding_model
        self.definition = definition
        self.live = LiveRows(pool.arena, definition.name, definition)
        self._blocks = Blocks(pool.arena, definition.metric)
        self._planner = Planner(self._blocks, definition.metric)
        self.masks = Masks(self._blocks.columns)
        self.lexicon = lexical.Lexicon(self._blocks.terms)
        self.lanes = feed.Lanes()

    def after_fork_in_child(self) -> None:
        """Locks of our own; what other threads of the parent held stays locked."""
        self.live.after_fork_in_child()
        self.masks.after_fork_in_child()
        self.lexicon.after_fork_in_child()
        self._blocks.after_fork_in_child()

    def __repr__(self) -> str:
        """Name and shape."""
        return f"Collection({self.name!r}, dimension={self.dimension}, metric={self.metric!r}, dtype={self.dtype!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its place, not its content: it opens there."""
        return (_reopen, (self.pool, self.name))

    @contextmanager
    def _view(self) -> Iterator[View]:
        turns.give_way()
        view = self.live.acquire()
        try:
            yield view
        finally:
            self.live.release()

    # ------------------------------------------------------------------ writing

    def put(
        self,
        ids: Sequence[str],
        vectors: Any = None,
        texts: Sequence[str | None] | None = None,
        metadata: Sequence[dict[str, Any] | None] | None = None,
        *,
        created: datetime | Sequence[datetime] | None = None,
        delete: Sequence[str] = (),
    ) -> None:
        """Insert or replace records, and delete others, in one batch that readers see whole or not at all.

        `vectors` is (n, dimension) numbers, or a list with None for records without one; `texts`, `metadata` and `created`
        have one item per id. Of equal ids in one batch the last counts. `created` is the records' own time (default: now).

        Raises `InvalidRecord` (before anything is written), `RecordTooLarge`, `PoolFull`, `PoolBusy`, `CollectionDropped`,
        `PoolClosed`.
        """
        turns.give_way()
        _check_ids(ids)
        _check_ids(delete)
        encoded = batch.encode(ids, vectors, texts, metadata, created, self.dimension, self.metric, self.dtype)
        if len(delete):
            delete = self._existing(delete)
        if len(delete):
            encoded = batch.with_deletes(delete, encoded)
        if encoded.ids:
            self.pool.write(self.definition, encoded)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete records, all in one step; returns how many there were. Raises as `put` does."""
        _check_ids(ids)
        found = self._existing(ids)
        if found:
            self.pool.write(self.definition, batch.with_deletes(found, None))
        return len(found)

    def purge(self) -> None:
        """See that the bytes of what was deleted or replaced until now leave the pool with the next rounds of maintenance.

        Otherwise they stay until enough of their segment's rows are dead. It costs the rewriting of every segment that has
        such rows. Raises `PoolBusy`, `PoolDamaged`.
        """
        with self._view() as view:
            decayed = [part.segment.uid for part in view.parts if part.dead]
        purge.mark(self.pool.arena, decayed)

    def _existing(self, ids: Sequence[str]) -> list[str]:
        encoded_ids = [batch.encode_id(one) for one in ids]
        unique = dict(zip(ids, encoded_ids, strict=True))
        with self._view() as view:
            return [one for one, encoded in unique.items() if _locate(view, encoded) is not None]

    # ------------------------------------------------------------------ reading

    def get(self, ids: Sequence[str]) -> list[Record | None]:
        """The records of these ids, None where there is none; all as of one moment. Raises `PoolDamaged`."""
        _check_ids(ids)
        with self._view() as view:
            found = []
            for one in ids:
                place = _locate(view, batch.encode_id(one))
                found.append(None if place is None else _record(*place))
            return found

    def __contains__(self, id: object) -> bool:
        """True if a record has this id."""
        try:
            encoded = batch.encode_id(id)
        except InvalidRecord:
            return False
        with self._view() as view:
            return _locate(view, encoded) is not None

    def __len__(self) -> int:
        """How many records there are."""
        return self.live.counts()[0]

    @property
    def version(self) -> int:
        """A number that rises exactly when something new becomes visible, and never for maintenance."""
        return self.live.counts()[1]

    def find(
        self,
        filter: dict[str, Any] | Filter | None = None,
        limit: int | None = None,
        newest_first: bool = False,
        *,
        after: int | None = None,
        until: int | None = None,
    ) -> list[Record]:
        """The records that match, in the order they were written (or the reverse), at most `limit`.

        Only those whose order keys (`order_keys`) are greater than `after`, and not greater than `until`.
        """
        wanted = parse(filter)
        if limit is not None and (type(limit) is not int or limit < 0):
            raise InvalidFilter(
                f"limit is {limit!r}", operation="find", hint="Give a whole number from 0 on, or None for all"
            )
        with self._view() as view:
            found = listing.listed(view, partial(self._admitted, wanted=wanted), limit, newest_first, after, until)
            return [_record(*place) for place in found]

    def _admitted(self, part: Part, wanted: Filter | None) -> npt.NDArray[np.bool_] | None:
        """The rows of a part that a filter admits, None for all."""
        if wanted is None:
            return None
        return self.masks.of(part, wanted) if self.masks.may_match(part, wanted) else np.zeros(part.rows, np.bool_)

    def order_keys(self, ids: Sequence[str]) -> list[int | None]:
        """The order keys of the records with these ids, None where there is none. Raises `PoolDamaged`."""
        _check_ids(ids)
        with self._view() as view:
            found = [_locate(view, batch.encode_id(one)) for one in ids]
            return [None if place is None else place[0].read(place[1]).key for place in found]

    def changes(
        self,
        place: str | bytes | None = None,
        limit: int | None = None,
        filter: dict[str, Any] | Filter | None = None,
    ) -> Changes:
        """What is new since a place (None: everything), at most `limit`, and the place after it, good in every process.

        Of records, those that match; of deleted ids, all that still leave a trace. No record is passed over, whichever
        process of whichever node writes it, and merging changes nothing. Raises `InvalidRecord` for a text that is no
        place, `InvalidFilter`, `PoolDamaged`.
        """
        known = feed.decoded(place)
        wanted = parse(filter)
        if limit is not None and (type(limit) is not int or limit < 1):
            raise InvalidFilter(f"limit is {limit!r}", operation="changes", hint="Give a whole number from 1 on, or None")
        with self._view() as view:
            if known.version == view.version:
                return Changes([], known.encoded(), False, None)
            live = view.live
            if wanted is not None:
                live = sum(int(np.count_nonzero(self._mask(part, wanted))) for part in view.parts)
            mask_of = (lambda part: None) if wanted is None else partial(self.masks.of, wanted=wanted)
            found = feed.since(view, known, limit, self.lanes, mask_of, partial(_lives_again, view))
            changes = [_change(view.parts[one.part].segment, one) for one in found.rows]
            return Changes(changes, found.place.encoded(), found.more, live)

    def place(self) -> str:
        """The place of who has read all that there is now: `changes` from here gives what comes."""
        with self._view() as view:
            return feed.place_of(view, self.lanes).encoded()

    def search(
        self,
        vectors: Any = None,
        k: int = 10,
        filter: dict[str, Any] | Filter | None = None,
        *,
        ids: Sequence[str] | None = None,
        text: str | Sequence[str] | None = None,
        alpha: float | None = None,
        text_k: int | None = None,
        exact: bool = False,
    ) -> Any:
        """The k best records for a (dimension,) query as list[Hit], or for (n, dimension) queries as list[list[Hit]].

        `text` searches by words: alone for the best by BM25, beside vectors for the best of both rankings, fused by
        reciprocal rank or, with `alpha`, by score (1: vectors alone, 0: words alone); n queries want n texts. `text_k` is
        how many of the best by words are fused (default: 2 k, at least 50).

        `filter` narrows by metadata, `ids` to these records. Records without a vector are never found by vector, those
        that share no word with `text` not by words. Indexes answer for most records, each built to find 95 of the 100 that
        belong in the best ten; with `exact` every live record that the filter admits is compared. Raises `InvalidRecord`,
        `InvalidFilter`, `PoolDamaged`.
        """
        k = knn.check_k(k)
        wanted = parse(filter)
        if ids is not None:
            _check_ids(ids)
        if text is not None:
            return self._search_words(vectors, k, wanted, ids, text, alpha, text_k, exact)
        if vectors is None:
            raise InvalidRecord("nothing to search for", operation="search", hint="Give vectors, text, or both")
        queries, single = self._queries(vectors)
        with self._view() as view:
            found = self._planner.search(view, self._masks(view, wanted, ids), _name(wanted, ids), queries, k, exact)
            hits = [_hits(view.parts, one) for one in found]
        return hits[0] if single else hits

    def _search_words(
        self,
        vectors: Any,
        k: int,
        wanted: Filter | None,
        ids: Sequence[str] | None,
        text: str | Sequence[str],
        alpha: float | None,
        text_k: int | None,
        exact: bool,
    ) -> Any:
        """`search` by words, or by words and vectors, all as of one view."""
        questions, single = lexical.check_questions(text)
        alpha, depth = fusion.check_alpha(alpha), fusion.depth(k)
        text_k = k if vectors is None else depth if text_k is None else knn.check_k(text_k)
        queries = None
        if vectors is not None:
            queries, single_vector = self._queries(vectors)
            if single_vector != single or len(queries) != len(questions):
                what = f"{len(questions)} texts for {len(queries)} vectors"
                raise InvalidRecord(what, operation="search", hint="Give one text (no list) for one vector, or n for n")
        with self._view() as view:
            masks = self._masks(view, wanted, ids)
            found = [self.lexicon.search(view.parts, masks, one, text_k) for one in questions]
            if queries is not None:
                by_vector = self._planner.search(view, masks, _name(wanted, ids), queries, depth, exact)
                found = [fusion.fused(*both, k, alpha) for both in zip(by_vector, found, strict=True)]
            hits = [_hits(view.parts, one) for one in found]
        return hits[0] if single else hits

    def match(
        self, vector: Any, text: str, k: int = 10, filter: dict[str, Any] | Filter | None = None
    ) -> list[tuple[Hit, float]]:
        """The k records nearest to a (dimension,) vector, each with how much of `text` its words cover (`Lexicon.shares`).

        For a ranking of one's own over both. Without a vector (None), the k best by words. Raises as `search` does.
        """
        k, wanted, (question,) = knn.check_k(k), parse(filter), lexical.check_questions([text])[0]
        queries = None if vector is None else self._queries(vector)[0]
        with self._view() as view:
            masks = self._masks(view, wanted, None)
            if queries is None:
                found = self.lexicon.search(view.parts, masks, question, k)
            else:
                (found,) = self._planner.search(view, masks, _name(wanted, None), queries, k, False)
            shares = self.lexicon.shares(view.parts, list(zip(found.parts, found.rows, strict=True)), question)
            return list(zip(_hits(view.parts, found), shares, strict=True))

    def _masks(self, view: View, wanted: Filter | None, ids: Sequence[str] | None) -> knn.PerPart:
        """For each part of a view which of its rows a search may find, None for all."""
        masks: knn.PerPart = [None] * len(view.parts) if wanted is None else Admitted(self.masks, view.parts, wanted)
        return masks if ids is None else _narrow_to(view, ids, masks)

    def _queries(self, vectors: Any) -> tuple[npt.NDArray[np.float32], bool]:
        if self.dimension is None:
            raise InvalidRecord(
                f"collection {self.name!r} has no vectors",
                operation="search",
                hint="Declare it with dimension=..., or use get and find",
            )
        try:
            single = (vectors.ndim if isinstance(vectors, np.ndarray) else np.ndim(vectors)) == 1
        except ValueError:  # rows of different lengths
            single = False
        if single and isinstance(vectors, np.ndarray) and vectors.shape == (self.dimension,):
            vectors = vectors.reshape(1, -1)
        elif single:
            vectors = [vectors]
        queries = batch.as_vectors(vectors, self.dimension, "search")
        if batch.are_unit_vectors(queries):
            return queries, single
        squares = batch.squared_norms(queries, self.metric, "search")
        return (batch.unit(queries, squares)[0] if self.metric == "cosine" else queries), single

    def _mask(self, part: Part, wanted: Filter | None) -> npt.NDArray[np.bool_]:
        alive = part.alive[: part.rows]
        return alive if wanted is None else alive & self.masks.of(part, wanted)

    def scan(self, filter: dict[str, Any] | Filter | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The live records as an Arrow table over the pool's own memory.

        Columns: id, created, text, metadata (JSON), vector (as stored: unit vectors under cosine), key. Nothing is copied
        but where live rows lie scattered between dead ones. While the table lives, its memory is not reused. Row checksums
        are not looked at: `Pool.verify` does that.
        """
        wanted = parse(filter)
        schema = scans.schema(self.dimension, self.dtype, scans.check_columns(columns))
        with self._view() as view:
            batches: list[pa.RecordBatch] = []
            pin = view.pin.hand_out()
            for part in view.parts:
                mask = self._mask(part, wanted).copy() if wanted is not None or part.dead else None
                if mask is None or mask.any():
                    batches += scans.batches(part, mask, pin, schema)
            return pa.Table.from_batches(batches, schema=schema)


def _reopen(pool: Pool, name: str) -> Collection:
    return pool.collection(name)


def _check_ids(ids: object) -> None:
    if type(ids) is list:
        return
    if isinstance(ids, (str, bytes)) or not hasattr(ids, "__len__"):
        raise InvalidRecord(
            f"ids is a {type(ids).__name__}", operation="ids", hint="Give a list of ids, even for one record"
        )


def _locate(view: View, encoded_id: bytes) -> tuple[Segment, int] | None:
    """Where the live record of an id is."""
    hashed = hash31(encoded_id)
    for part in reversed(view.parts):
        row = part.segment.lookup(encoded_id, hashed, part.rows)
        if row >= 0 and part.alive[row]:
            return part.segment, row
    return None


def _lives_again(view: View, segment: Segment, row: int) -> bool:
    """Whether the id of this row, a tombstone, has a live record."""
    return _locate(view, segment.id_at(row)) is not None


def _change(segment: Segment, found: feed.Row) -> Change:
    if found.deleted:
        return Change(segment.read(found.row).id.decode(), found.key, None)
    record = _record(segment, found.row)
    return Change(record.id, found.key, record)


def _metadata(segment: Segment, row: int, raw: RawRow) -> dict[str, Any]:
    if raw.metadata is None:
        return {}
    try:
        return orjson.loads(raw.metadata)  # type: ignore[no-any-return]
    except orjson.JSONDecodeError:
        raise segment.damaged("metadata is not JSON", "metadata_offsets", row, 4) from None


def _record(segment: Segment, row: int) -> Record:
    raw = segment.read(row)
    vector = segment.vector(row, raw.norm_bits) if raw.flags & HAS_VECTOR else None
    text = None if raw.text is None else raw.text.decode()
    return Record(raw.id.decode(), text, _metadata(segment, row, raw), batch.moment(raw.created_us), vector)


def _hits(parts: tuple[Part, ...], found: knn.Found) -> list[Hit]:
    hits = []
    for score, index, row in zip(*found, strict=True):
        segment = parts[index].segment
        encoded_id, text, fields, created_us, *_ = segment.read(row)
        try:
            metadata = {} if fields is None else _parsed(fields)
        except orjson.JSONDecodeError:
            raise segment.damaged("metadata is not JSON", "metadata_offsets", row, 4) from None
        created = batch.moment(created_us)
        hits.append(_new(Hit, (encoded_id.decode(), score, None if text is None else text.decode(), metadata, created)))
    return hits


def _name(wanted: Filter | None, ids: Sequence[str] | None) -> str | None:
    """What tells a search's masks from another's; None if they are not worth remembering."""
    if ids is not None or (wanted is not None and is_timed(wanted)):
        return None
    return "" if wanted is None else wanted.key()


def _narrow_to(view: View, ids: Sequence[str], masks: knn.PerPart) -> list[npt.NDArray[np.bool_]]:
    """The masks, narrowed to the live rows of these ids."""
    chosen = [np.zeros(part.rows, np.bool_) for part in view.parts]
    positions = {id(part.segment): index for index, part in enumerate(view.parts)}
    for one in ids:
        place = _locate(view, batch.encode_id(one))
        if place is not None:
            chosen[positions[id(place[0])]][place[1]] = True
    return [one if (mask := masks[index]) is None else one & mask for index, one in enumerate(chosen)]
