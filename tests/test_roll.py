"""A writer that needs more room rolls to a new segment, and leaves none behind that nobody fills."""

from __future__ import annotations

import numpy as np

from sharedrag import Pool

BATCH, BATCHES, DIMENSION = 500, 12, 64


def test_a_writer_has_one_open_segment_a_collection(pool: Pool) -> None:
    """However often a lane rolls, it has one open segment, and the space taken stays in proportion to what is in it."""
    rng = np.random.default_rng(1)
    collection = pool.collection("rolling", dimension=DIMENSION)
    for batch in range(BATCHES):
        vectors = rng.standard_normal((BATCH, DIMENSION), np.float32)
        collection.put([f"{batch}-{row}" for row in range(BATCH)], vectors, ["a text of some length " * 8] * BATCH)
        assert [lane.open_segments for lane in pool.info().lanes] == [1]
    info = pool.info().collections[0]
    payload = info.rows * (DIMENSION * 4 + 250)
    assert info.segments_sealed + info.segments_open > 2, "nothing was rolled: make the batches larger"
    assert info.rows == BATCH * BATCHES
    # The newest segment is up to four times the one before, and may have just been begun.
    assert info.bytes_allocated < 8 * payload
