"""Records to write and questions to ask, made before any clock runs: the same for every process that asks alike."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

DIMENSION = 384
_CLUSTERS = 64
_SPREAD = 0.8  # length of the noise around a cluster's centre of length 1
_DISTINCT = 8192  # records that differ in all but their id: 16 MB, more than the caches hold
_TEXT_BYTES = 300
_SENTENCES = (
    "the ferry from kona does not run any more take the trail permit early because rain in hilo and sun at poipu "
    "volcano park closes its road snorkel at dawn turtles rest there bring water shoes ask the ranger about the gate "
    "saddle road is paved now haleakala sunrise needs a booking flights between islands take forty minutes"
)
_WORDS = _SENTENCES.split()

Vectors = npt.NDArray[np.float32]
Call = tuple[list[str], Vectors, list[str], list[dict[str, Any]]]


class Records(NamedTuple):
    """As many ids, unit vectors (n, 384) float32, texts of about 300 bytes and metadata {room, author, ts}."""

    ids: list[str]
    vectors: Vectors
    texts: list[str]
    metadata: list[dict[str, Any]]

    def calls(self, batch: int) -> list[Call]:
        """The arguments of each `put`, cut before the clock runs."""
        cuts = [slice(at, at + batch) for at in range(0, len(self.ids), batch)]
        return [(self.ids[cut], self.vectors[cut], self.texts[cut], self.metadata[cut]) for cut in cuts]


def vectors(count: int, seed: int) -> Vectors:
    """Clustered unit vectors, (count, 384) float32."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((_CLUSTERS, DIMENSION), np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    found = rng.standard_normal((count, DIMENSION), np.float32)
    found *= _SPREAD / np.sqrt(DIMENSION)
    found += centres[rng.integers(_CLUSTERS, size=count)]
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def records(count: int, seed: int, prefix: str = "m") -> Records:
    """`count` records with ids of their own (of `prefix`); beyond some thousands, vectors and texts come round again."""
    distinct = min(count, _DISTINCT)
    choice = random.Random(seed)
    texts = [" ".join(choice.choices(_WORDS, k=80))[: _TEXT_BYTES - 20] + f" no. {index}" for index in range(distinct)]
    metadata = [
        {"room": f"room{index % 8}", "author": f"author{index % 30}", "ts": 1_790_000_000 + index}
        for index in range(distinct)
    ]
    turns = np.arange(count) % distinct
    return Records(
        [f"{prefix}{index:09d}" for index in range(count)],
        vectors(distinct, seed)[turns],
        [texts[turn] for turn in turns.tolist()],
        [metadata[turn] for turn in turns.tolist()],
    )


def row_bytes(of: Records) -> int:
    """Bytes of one record's columns, about: vector, strings, and 56 of keys, checksums and offsets."""
    import orjson

    strings = len(of.ids[0]) + len(of.texts[0]) + len(orjson.dumps(of.metadata[0]))
    return DIMENSION * 4 + strings + 56
