"""BM25 over the rows' texts: the k best rows for a question in words, dead and filtered rows left out.

    score(row) = sum over the question's terms of  asked * idf * tf / (tf + k1 * (1 - b + b * length / average length))
    idf        = ln(1 + (N - df + 0.5) / (df + 0.5))

with k1 = 1.2 and b = 0.75 (Robertson & Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009) and the idf
of Lucene, which is never negative. `asked` is how often the question has the term, tf how often the row has it, and a
row's length counts its terms. N, df and the average are those of all live rows that have a term at all, whatever a filter
admits: they do not depend on how rows lie in segments, nor on who asks. Rows that share no term with the question are not
found; of equal scores the newer row is first.

Terms are taken by falling weight, and once those that remain could not lift a new row above the k-th best, they are only
looked up for the rows met so far (MaxScore: Turtle & Flood 1995). Nothing is approximated by that.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sharedrag.errors import InvalidRecord
from sharedrag.search import words
from sharedrag.search.knn import Found, Mask, PerPart
from sharedrag.search.postings import COUNT_MAX, I64, U16, U64, Postings
from sharedrag.search.tail import Tail
from sharedrag.search.terms import Terms
from sharedrag.segments.live import Part

K1 = 1.2
B = 0.75
_ASKED_MAX = 256  # terms of a question that are looked up: those of greatest weight
_SHARED_MAX = 32  # the same, where given rows are compared with a question
_LIGHT = 1 / 40  # of what all terms of a question weigh: terms that weigh less are passed over there
_SLACK = np.float32(1.0001)  # bounds are compared with sums of float32
# Looking one row up among postings costs about as much as scoring, or counting, that many of them.
_SCORED_PER_LOOKUP = 4
_COUNTED_PER_LOOKUP = 16
_HOLDING_MAX = 4096  # terms of which it is remembered how many dead rows have them
F32 = npt.NDArray[np.float32]


class _Gone:
    """The places of a source that are dead, or beyond the view: how many, and what they would have counted.

    Of one source's rows ever more die, so those that are gone are known by their number, and what was counted is kept.
    """

    def __init__(self, postings: Postings, alive: Mask, count: int) -> None:
        self.count = count
        self.alive = alive
        self.places: U16 = np.flatnonzero(~alive).astype(np.uint16)
        lengths = postings.lengths[self.places]
        self.documents = int(np.count_nonzero(lengths))
        self.total = int(lengths.sum(dtype=np.int64))
        self._holding: dict[int, int] = {}

    def holding(self, term: int, places: U16) -> int:
        """How many of these places have a term, given by its hash and all places that have it."""
        known = self._holding.get(term)
        if known is None:
            if len(self._holding) >= _HOLDING_MAX:
                self._holding.clear()
            known = self._holding[term] = self._count(places)
        return known

    def _count(self, places: U16) -> int:
        if len(places) < len(self.places) * _COUNTED_PER_LOOKUP:
            return len(places) - int(np.count_nonzero(self.alive.take(places)))
        return int(np.count_nonzero(_found_in(places, self.places)[1]))


class _Source(NamedTuple):
    """Some rows of a part, their postings, and what counts of them."""

    part: int
    postings: Postings
    gone: _Gone | None
    wanted: Mask | None  # (rows,): neither gone nor filtered away; None for all


class _Weighed(NamedTuple):
    """What is asked, by falling weight: which of the hashes, and its weight; what a row's length does; all weights.

    `most` counts the terms that no row has, too: a row that held every term endlessly would score that much.
    """

    order: I64
    weights: F32
    base: np.float32
    factor: np.float32
    most: float


class Lexicon:
    """BM25 over the parts of a collection's views. Remembers what this process had to tokenise itself.

    `blocks` gives a part's block in the arena, or None where there is none (or none of use to this process). Rows that no
    block covers are tokenised here, each once.
    """

    def __init__(self, blocks: Callable[[Part], Terms | None] | None = None) -> None:
        """Start with nothing remembered."""
        self._blocks = blocks
        self._lock = threading.Lock()
        self._tails: dict[int, Tail] = {}
        self._gone: dict[tuple[int, int], _Gone] = {}

    def after_fork_in_child(self) -> None:
        """Locks of our own."""
        self._lock = threading.Lock()
        for tail in self._tails.values():
            tail.after_fork_in_child()

    def search(self, parts: tuple[Part, ...], masks: PerPart, question: str, k: int) -> Found:
        """The k best rows of all parts; `masks[i]` (rows,) bool narrows part i, None leaves it whole.

        Raises `PoolDamaged` for texts that are not UTF-8.
        """
        hashes, asked = words.of_question(question)
        if not len(hashes):
            return Found([], [], [])
        sources = self._sources(parts, masks, hashes)
        found = [source.postings.find(hashes) for source in sources]
        frequencies = _frequencies(sources, found, len(hashes))
        if not frequencies.any():
            return Found([], [], [])
        weighed = _weighed(sources, frequencies, asked)
        best = _Best(k)
        scratch = np.zeros(max(source.postings.rows for source in sources), np.float32)
        for source, terms in sorted(zip(sources, found, strict=True), key=lambda one: -one[0].postings.rows):
            best.add(source, *_score(source, terms, weighed, scratch, k, best.floor))
        return best.found(parts)

    def shares(self, parts: tuple[Part, ...], rows: list[tuple[int, int]], question: str) -> list[float]:
        """For each row, given as (part, row): its BM25 score, as a share of the most that the question could bring any row.

        From 0 (none of its words) to below 1. Unlike the scores themselves, shares of different questions can be compared.
        The lightest terms (a fortieth of the whole or less), and all but the 32 heaviest, are passed over: they change
        little. Raises `PoolDamaged` for texts that are not UTF-8.
        """
        hashes, asked = words.of_question(question)
        scores = [0.0] * len(rows)
        if not len(hashes) or not rows:
            return scores
        sources = self._sources(parts, [None] * len(parts), hashes)
        found = [source.postings.find(hashes) for source in sources]
        frequencies = _frequencies(sources, found, len(hashes))
        if not frequencies.any():
            return scores
        weighed = _weighed(sources, frequencies, asked)
        for source, terms in zip(sources, found, strict=True):
            first, rows_here = source.postings.first, source.postings.rows
            here = [at for at, (part, row) in enumerate(rows) if part == source.part and 0 <= row - first < rows_here]
            if here:
                spans = _spans(source.postings, terms, weighed)[:_SHARED_MAX]
                spans = [span for span in spans if span.weight > _LIGHT * weighed.most]
                for at in here:
                    scores[at] = _score_of(source.postings, rows[at][1] - first, spans, weighed) / weighed.most
        return scores

    # ------------------------------------------------------------------ where the postings are

    def _sources(self, parts: tuple[Part, ...], masks: PerPart, hashes: U64) -> list[_Source]:
        sources: list[_Source] = []
        for index, part in enumerate(parts):
            found = self._postings(part, hashes)
            sources += [self._source(index, part, masks[index], one) for one in found if one.first < part.rows]
        self._forget_others(parts)
        return sources

    def _source(self, index: int, part: Part, mask: Mask | None, postings: Postings) -> _Source:
        start, rows = postings.first, postings.rows
        stop = min(part.rows, start + rows)
        beyond = start + rows - stop  # another thread's view may be newer than this one
        gone = None
        if part.dead or beyond:
            alive = _padded(part.alive[start:stop], beyond)
            count = rows - int(np.count_nonzero(alive))
            if count:
                gone = self._gone.get((part.segment.uid, start))
                if gone is None or gone.count != count or len(gone.alive) != rows:
                    gone = self._gone[part.segment.uid, start] = _Gone(postings, alive.copy(), count)
        wanted = None if gone is None else gone.alive
        if mask is not None:
            admitted = _padded(mask[start:stop], beyond)
            wanted = admitted if wanted is None else admitted & wanted
        return _Source(index, postings, gone, wanted)

    def _postings(self, part: Part, hashes: U64) -> tuple[Postings, ...]:
        """Postings of all rows of a part; of its newest rows maybe only of these terms."""
        block = None if self._blocks is None else self._blocks(part)
        uid, covered = part.segment.uid, 0 if block is None else block.rows
        runs = () if block is None else block.runs
        if covered >= part.rows:
            self._tails.pop(uid, None)
            return runs
        with self._lock:
            tail = self._tails.get(uid)
            if tail is None or tail.first != covered:
                tail = self._tails[uid] = Tail(part.segment, covered)
        return (*runs, *tail.of(part.rows, hashes))

    def _forget_others(self, parts: tuple[Part, ...]) -> None:
        """Drop what was remembered of segments that are gone."""
        known = {part.segment.uid for part in parts}
        if known.issuperset(self._tails) and known.issuperset(uid for uid, _ in tuple(self._gone)):
            return
        with self._lock:
            self._tails = {uid: tail for uid, tail in self._tails.items() if uid in known}
            self._gone = {key: gone for key, gone in self._gone.items() if key[0] in known}


def check_questions(text: object) -> tuple[list[str], bool]:
    """(the questions, whether it is one alone); raises `InvalidRecord` unless it is a string or a list of strings."""
    questions = [text] if isinstance(text, str) else text
    if not isinstance(questions, (list, tuple)) or not all(isinstance(one, str) for one in questions):
        raise InvalidRecord(
            f"text is {text!r:.80}", operation="search", hint="Give the words to look for as a string, or a list of them"
        )
    for one in questions:
        try:
            one.encode()
        except UnicodeEncodeError:
            hint = "A lone surrogate is no character: repair the text where it was decoded"
            raise InvalidRecord("text is not valid Unicode", operation="search", hint=hint) from None
    return list(questions), isinstance(text, str)


def _padded(mask: Mask, missing: int) -> Mask:
    return np.concatenate((mask, np.zeros(missing, np.bool_))) if missing else mask


# ---------------------------------------------------------------------- what a term weighs


def _frequencies(sources: list[_Source], found: list[tuple[I64, I64]], count: int) -> I64:
    """In how many live rows each of the `count` terms is."""
    frequencies = np.zeros(count, np.int64)
    for source, (which, terms) in zip(sources, found, strict=True):
        if not len(which):
            continue
        postings, gone = source.postings, source.gone
        begins, ends = postings.starts[terms].tolist(), postings.starts[terms + 1].tolist()
        each = [end - begin for begin, end in zip(begins, ends, strict=True)]
        if gone is not None:
            held = zip(postings.hashes[terms].tolist(), begins, ends, strict=True)
            dead = [gone.holding(term, postings.places[begin:end]) for term, begin, end in held]
            each = [one - other for one, other in zip(each, dead, strict=True)]
        frequencies[which] += each
    return frequencies


def _weighed(sources: list[_Source], frequencies: I64, asked: I64) -> _Weighed:
    documents = total = 0
    for source in sources:
        gone = source.gone
        documents += source.postings.documents - (0 if gone is None else gone.documents)
        total += source.postings.total - (0 if gone is None else gone.total)
    weights = asked * np.log1p((documents - frequencies + 0.5) / (frequencies + 0.5))
    most = float(weights.sum())
    weights[frequencies == 0] = 0.0
    order = (-weights).argsort(kind="stable")[: min(_ASKED_MAX, np.count_nonzero(frequencies))]
    base, factor = np.float32(K1 * (1 - B)), np.float32(K1 * B * documents / total)
    return _Weighed(order, weights[order].astype(np.float32), base, factor, most)


# ---------------------------------------------------------------------- what a row scores


def _score(
    source: _Source, found: tuple[I64, I64], weighed: _Weighed, scratch: F32, k: int, floor: np.float32
) -> tuple[I64, F32]:
    """(places, scores) of the best k rows of a source; rows below `floor` may be missing. `scratch` is zero, and again."""
    postings, wanted = source.postings, source.wanted
    spans = _spans(postings, found, weighed)
    scores = scratch[: postings.rows]
    if wanted is not None and np.count_nonzero(wanted) * _SCORED_PER_LOOKUP * len(spans) < _total(spans):
        candidates, left = np.flatnonzero(wanted), spans
        rests = np.full(len(left), np.inf, np.float32)
    else:
        candidates, left, rests, floor = _meet(postings, wanted, spans, weighed, scores, k, floor)
    for span, rest in zip(left, rests, strict=True):
        candidates = candidates[scores.take(candidates) + rest >= floor]
        _add_to(scores, candidates, postings, span, weighed)
    result = scores.take(candidates)
    scores.fill(0)
    if len(left) == len(spans):  # candidates were not met, but given
        candidates, result = candidates[result > 0], result[result > 0]
    return _trimmed(candidates, result, k)


def _meet(
    postings: Postings, wanted: Mask | None, spans: list[_Span], weighed: _Weighed, scores: F32, k: int, floor: np.float32
) -> tuple[I64, list[_Span], F32, np.float32]:
    """Score the rows of the first spans, until those that are left could not bring a new row among the best.

    Returns the rows met, rising; the spans that are left; the most that each of them and those after it can add; the floor.
    """
    rests = np.cumsum([span.weight for span in spans[::-1]], dtype=np.float32)[::-1] * _SLACK
    met = [np.empty(0, np.int64)]
    count = at = 0
    while at < len(spans) and rests[at] >= floor:
        places, gains = _gains(postings, spans[at], weighed)
        held = scores.take(places)
        scores[places] = held + gains
        new = places if at == 0 else places[held == 0]
        if wanted is not None:
            new = new[wanted.take(new)]
        met.append(new)
        count += len(new)
        at += 1
        if at < len(spans) and k <= count < _total(spans[at:]) and rests[at] < rests[0] - rests[at]:
            partial = scores.take(np.concatenate(met))  # worth a look whether what is left can be skipped
            floor = max(floor, np.partition(partial, count - k)[count - k])
    narrow = np.concatenate(met).astype(np.uint16)
    narrow.sort()
    return narrow.astype(np.int64), spans[at:], rests[at:], floor


def _total(spans: list[_Span]) -> int:
    return sum(span.end - span.begin for span in spans)


class _Span(NamedTuple):
    """A term's postings in a source, and its weight."""

    begin: int
    end: int
    weight: np.float32


def _spans(postings: Postings, found: tuple[I64, I64], weighed: _Weighed) -> list[_Span]:
    """The postings of the terms asked for, by falling weight."""
    terms = dict(zip(found[0].tolist(), found[1].tolist(), strict=True))
    here = [
        (terms[which], weight)
        for which, weight in zip(weighed.order.tolist(), weighed.weights, strict=True)
        if which in terms
    ]
    return [_Span(int(postings.starts[term]), int(postings.starts[term + 1]), weight) for term, weight in here]


def _score_of(postings: Postings, place: int, spans: list[_Span], weighed: _Weighed) -> float:
    """What one row scores. For a few rows, plain bisection costs less than NumPy's."""
    places, counts = postings.places.data, postings.counts.data
    normal = float(weighed.base + weighed.factor * postings.lengths[place])
    score = 0.0
    for begin, end, weight in spans:
        at = bisect_left(places, place, begin, end)
        if at < end and places[at] == place:
            count = counts[at]
            if count == COUNT_MAX:
                count = int(postings.counts_at(np.array([at]))[0])
            score += float(weight) * count / (count + normal)
    return score


def _gains(postings: Postings, span: _Span, weighed: _Weighed) -> tuple[I64, F32]:
    """(places, what the term adds to their scores)."""
    places = postings.places[span.begin : span.end].astype(np.int64)
    return places, _gain(postings.counts_of(span.begin, span.end), postings.lengths.take(places), span, weighed)


def _gain(counts: F32, lengths: npt.NDArray[np.uint32], span: _Span, weighed: _Weighed) -> F32:
    saturation = lengths.astype(np.float32)
    saturation *= weighed.factor
    saturation += weighed.base
    saturation += counts
    counts *= span.weight
    counts /= saturation
    return counts


def _add_to(scores: F32, candidates: I64, postings: Postings, span: _Span, weighed: _Weighed) -> None:
    """Add what a term adds to these rows; what it adds to others does not matter."""
    if span.end - span.begin < len(candidates) * _SCORED_PER_LOOKUP:
        places, gains = _gains(postings, span, weighed)
        scores[places] += gains
        return
    at, has = _found_in(postings.places[span.begin : span.end], candidates.astype(np.uint16))
    rows = candidates[has]
    counts = postings.counts_at(at[has] + span.begin)
    scores[rows] += _gain(counts, postings.lengths.take(rows), span, weighed)


def _found_in(places: U16, wanted: U16) -> tuple[I64, Mask]:
    """(where, whether) each of the wanted places is among these; both rise."""
    at = places.searchsorted(wanted)
    at[at == len(places)] = 0
    return at, places[at] == wanted


def _trimmed(places: I64, scores: F32, k: int) -> tuple[I64, F32]:
    """The best k; of equal scores the newer rows, which are the later ones."""
    if len(scores) <= k:
        return places, scores
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > least)
    equal = np.flatnonzero(scores == least)
    equal = equal[places[equal].argsort()[len(above) - k :]]
    chosen = np.concatenate((above, equal))
    return places[chosen], scores[chosen]


class _Best:
    """The best k rows of the sources so far."""

    def __init__(self, k: int) -> None:
        self.floor = np.float32(-np.inf)
        self._k = k
        self._scores = np.empty(0, np.float32)
        self._parts = np.empty(0, np.int64)
        self._rows = np.empty(0, np.int64)

    def add(self, source: _Source, places: I64, scores: F32) -> None:
        """Take in the best rows of one more source."""
        if not len(scores):
            return
        self._scores = np.concatenate((self._scores, scores))
        self._parts = np.concatenate((self._parts, np.full(len(scores), source.part)))
        self._rows = np.concatenate((self._rows, places + source.postings.first))
        if len(self._scores) > self._k:
            kept = self._scores >= np.partition(self._scores, -self._k)[-self._k]
            self._scores, self._parts, self._rows = self._scores[kept], self._parts[kept], self._rows[kept]
        if len(self._scores) >= self._k:
            self.floor = self._scores.min()

    def found(self, parts: tuple[Part, ...]) -> Found:
        """Best first; of equal scores the newer row."""
        where = list(zip(self._parts.tolist(), self._rows.tolist(), strict=True))
        keys = np.array([parts[part].segment.key[row] for part, row in where], np.uint64)
        order = np.lexsort((~keys, -self._scores))[: self._k]
        return Found(self._scores[order].tolist(), self._parts[order].tolist(), self._rows[order].tolist())
