r"""The header of an index blob, and what it says.

Offset, size, field (little-endian); FAISS's own bytes follow at 128:

      0   8  magic "SRINDEX\x01"          72   8  rows: internal ids are 0..rows-1
      8   1  kind, as in `KINDS`         80   8  indexed: how many of them are in the index
      9   1  metric, as in `METRICS`     88   8  trained: how many there were when the lists were made
     10   1  qb: bits of a query's code  96   8  size of FAISS's bytes, B
     11   1  coarse: 1 = HNSW, 0 = flat 104   4  recall_target, f4
     12   4  dimension                  108   4  recall measured, f4
     16   4  lists                      112   4  query_scale, f4 (0 = queries go as they are)
     20   4  nprobe                     116   4  cost of a query by the model of `ivf_measure`, us, f4
     24   4  candidates                 120   8  measured: how many were in it when the settings were measured
     28   4  ef of the coarse HNSW
     32   4  k that recall was measured at
     36  36  zeros
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import faiss as _faiss
import numpy as np
import numpy.typing as npt

faiss: Any = _faiss  # its type stubs lack half of what it has

MAGIC = b"SRINDEX\x01"
HEADER_SIZE = 128
_FIELDS = struct.Struct("<8s4B6I36x4Q4fQ")
assert _FIELDS.size == HEADER_SIZE

#: Kinds of code, by the number in the header: FAISS's names of what follows "IVF<lists>,".
KINDS = ("RaBitQ", "RaBitQ2", "SQ8")
METRICS = {"cosine": faiss.METRIC_INNER_PRODUCT, "ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
_METRIC_NAMES = tuple(METRICS)
_LIMIT = 1 << 31  # above any count of lists, probes or candidates that makes sense


class IndexInvalid(ValueError):
    """A payload that is not an index blob, or not one that this version of the code or of FAISS can read."""


class Settings(NamedTuple):
    """What an index is and how it is searched; measured when it was built. See the table above."""

    kind: str
    metric: str
    qb: int
    hnsw: bool
    dimension: int
    lists: int
    nprobe: int
    candidates: int
    ef: int
    k: int
    rows: int
    indexed: int
    trained: int
    recall_target: float
    recall: float
    query_scale: float
    cost_us: float
    measured: int

    def pack(self, faiss_size: int) -> bytes:
        """The header, `HEADER_SIZE` bytes."""
        return _FIELDS.pack(
            MAGIC,
            KINDS.index(self.kind),
            _METRIC_NAMES.index(self.metric),
            self.qb,
            self.hnsw,
            self.dimension,
            self.lists,
            self.nprobe,
            self.candidates,
            self.ef,
            self.k,
            self.rows,
            self.indexed,
            self.trained,
            faiss_size,
            self.recall_target,
            self.recall,
            self.query_scale,
            self.cost_us,
            self.measured,
        )


def unpack(payload: npt.NDArray[np.uint8]) -> tuple[Settings, npt.NDArray[np.uint8]]:
    """(settings, FAISS's bytes as a view). Raises `IndexInvalid`."""
    if len(payload) < HEADER_SIZE:
        raise IndexInvalid(f"an index blob of {len(payload)} B is shorter than its header")
    magic, kind, metric, qb, hnsw, *rest, target, recall, scale, cost, measured = _FIELDS.unpack(
        payload[:HEADER_SIZE].tobytes()
    )
    dimension, lists, nprobe, candidates, ef, k, rows, indexed, trained, size = rest
    if magic != MAGIC:
        raise IndexInvalid(f"not an index blob of this version: {magic!r}")
    possible = (
        kind < len(KINDS)
        and metric < len(METRICS)
        and hnsw <= 1
        and 0 < dimension < _LIMIT
        and 0 < nprobe <= lists < _LIMIT
        and 0 < candidates < _LIMIT
        and 0 < k < _LIMIT
        and indexed <= rows < 1 << 56
        and 0 <= scale < np.inf
        and 0 < target <= 1
    )
    if not possible:
        raise IndexInvalid("an index blob's header says what cannot be")
    if size > len(payload) - HEADER_SIZE:
        raise IndexInvalid(f"an index blob of {len(payload):,} B should have {HEADER_SIZE + size:,}")
    settings = Settings(
        KINDS[kind],
        _METRIC_NAMES[metric],
        qb,
        bool(hnsw),
        dimension,
        lists,
        nprobe,
        candidates,
        ef,
        k,
        rows,
        indexed,
        trained,
        target,
        recall,
        scale,
        cost,
        measured,
    )
    return settings, payload[HEADER_SIZE : HEADER_SIZE + size]
