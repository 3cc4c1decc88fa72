"""`SharedVectorStore.query` through LlamaIndex, over nodes as its own pipeline stores them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from sharedrag import Pool
from tests.bench.children import Pipe
from tests.bench.figures import percentile
from tests.bench_search.stage import settle
from tests.peers.corpus import Corpus, K
from tests.peers.protocol import DIMENSION, Rows

_NAME = "nodes"


def _nodes(rows: Rows) -> list[Any]:
    from llama_index.core.schema import TextNode

    each = zip(rows.ids, rows.texts, rows.metadata, rows.vectors.tolist(), strict=True)
    return [TextNode(id_=one, text=text, metadata=fields, embedding=vector) for one, text, fields, vector in each]


def query(pipe: Pipe, path: Path, folder: Path, rounds: int) -> None:
    """Load all rows as nodes and ask; sends the median us of a query for each round."""
    from llama_index.core.vector_stores import VectorStoreQuery

    from sharedrag.llama_index import SharedVectorStore

    corpus = Corpus(folder)
    with Pool.open(path, create=True, capacity="2 GiB", maintenance=False) as pool:
        pool.collection(_NAME, dimension=DIMENSION)
        store = SharedVectorStore(pool, _NAME)
        for rows in corpus.batches(1_000):
            store.add(_nodes(rows))
        settle(pool)
        queries = [VectorStoreQuery(query_embedding=one.tolist(), similarity_top_k=K) for one in np.array(corpus.queries)]
        medians = []
        for _ in range(rounds):
            taken = []
            for one in queries:
                begun = time.perf_counter_ns()
                result = store.query(one)
                taken.append((time.perf_counter_ns() - begun) / 1000)
                assert result.nodes is not None and len(result.nodes) == K
            medians.append(percentile(taken, 0.5))
    pipe.send(medians)
