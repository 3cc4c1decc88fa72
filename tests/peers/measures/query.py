"""Latency of one query, one thread, at recall@10 >= 0.95: unfiltered, and within one room (1 % of the rows).

The knobs are tried from quick to accurate; the first that reaches the recall counts. A hit is an id with its text and
metadata. Where none reaches it, the most accurate is shown with its recall. Questions come in a random order, always the
same, so that those that choose the knob are no harder than the others.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from tests.bench.figures import percentile
from tests.peers.corpus import Corpus, K
from tests.peers.job import RECALL, Job, rounded, tell
from tests.peers.protocol import Peer

_WARM = 20
_WARM_S = 1.0
_ENOUGH = 20  # queries that are asked however slow the peer is
_ENOUGH_TO_CHOOSE = 10


def run(job: Job) -> dict[str, Any]:
    """Tune, then measure; `knob` is the index of the one that others measures use."""
    corpus = job.corpus
    peer = job.open()
    plain = _tuned(job, peer, corpus, filtered=False)
    if "filter" in job.kind.cannot:
        filtered: dict[str, Any] = {"cannot": job.kind.cannot["filter"]}
    else:
        filtered = _tuned(job, peer, corpus, filtered=True)
    peer.close()
    return {"knob": plain["knob"], "plain": plain, "filtered": filtered}


def _tuned(job: Job, peer: Peer, corpus: Corpus, filtered: bool) -> dict[str, Any]:
    """The figures of the first knob that reaches the recall over all queries."""
    effort = job.effort
    knobs = job.kind.knobs
    measured: dict[str, Any] = {}
    for index, knob in enumerate(knobs):
        tell(f"{'1 % filter' if filtered else 'query'}, knob {index + 1} of {len(knobs)}")
        peer.use(knob)
        if index < len(knobs) - 1:
            recall, _ = _pass(peer, corpus, filtered, effort.tuning, effort.tuning_s, _ENOUGH_TO_CHOOSE)
            if recall < RECALL:
                continue
        recall, times = _pass(peer, corpus, filtered, effort.queries, effort.query_s, _ENOUGH)
        measured = {
            "knob": index,
            "setting": str(knob),
            "recall": round(recall, 4),
            "p50_ms": rounded(percentile(times, 0.5)),
            "p99_ms": rounded(percentile(times, 0.99)),
            "queries": len(times),
        }
        if recall >= RECALL:
            break
    return measured


def _pass(
    peer: Peer, corpus: Corpus, filtered: bool, queries: int, seconds: float, enough: int
) -> tuple[float, list[float]]:
    """Recall, and the time of each query in ms."""
    times: list[float] = []
    hits = []
    order = np.random.default_rng(5).permutation(len(corpus.queries))[:queries].tolist()
    asked = corpus.queries[order]
    rooms = [corpus.room(number) if filtered else None for number in order]
    until = time.monotonic() + _WARM_S
    for query, room in zip(asked[:_WARM], rooms, strict=False):
        peer.search(query, K, room)
        if time.monotonic() > until:
            break
    until = time.monotonic() + seconds
    for query, room in zip(asked, rooms, strict=True):
        begun = time.perf_counter_ns()
        found = peer.search(query, K, room)
        times.append((time.perf_counter_ns() - begun) / 1e6)
        hits.append(found)
        if len(times) >= enough and time.monotonic() > until:
            break
    right = [corpus.right(number, found, filtered) for number, found in zip(order, hits, strict=False)]
    return sum(right) / len(right), times
