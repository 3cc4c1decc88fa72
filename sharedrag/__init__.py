"""sharedrag: a shared-memory chat-history RAG store that many processes read and write together.

    with Pool.open("/dev/shm/notes.pool", create=True, capacity="1 GiB") as pool:  # in as many processes as you like
        notes = pool.collection("notes", dimension=3)
        notes.put(["a"], [[1, 0, 0]], texts=["There is no ferry."], metadata=[{"author": "ann"}])
        print(notes.search([1, 0.1, 0], k=5, filter={"author": "ann"}))

`sharedrag.llama_index` and `sharedrag.langchain` have the frameworks' stores, `sharedrag.history` a group's conversations,
`sharedrag.embed` the embedders, `sharedrag.filters` filters as objects.
"""

from sharedrag.collection import Collection, Hit, Record
from sharedrag.errors import (
    CollectionDropped,
    CollectionMismatch,
    CollectionNotFound,
    InvalidFilter,
    InvalidRecord,
    NotAPool,
    PoolBusy,
    PoolClosed,
    PoolDamaged,
    PoolFull,
    PoolNotFound,
    PoolReplaced,
    PoolTruncated,
    PoolVersionUnsupported,
    RecordTooLarge,
    SharedRagError,
    UnsupportedFileSystem,
    UnsupportedPlatform,
)
from sharedrag.filters import And, Filter, Not, Or, Where
from sharedrag.pool import Pool

__all__ = [
    "And",
    "Collection",
    "CollectionDropped",
    "CollectionMismatch",
    "CollectionNotFound",
    "Filter",
    "Hit",
    "InvalidFilter",
    "InvalidRecord",
    "Not",
    "NotAPool",
    "Or",
    "Pool",
    "PoolBusy",
    "PoolClosed",
    "PoolDamaged",
    "PoolFull",
    "PoolNotFound",
    "PoolReplaced",
    "PoolTruncated",
    "PoolVersionUnsupported",
    "Record",
    "RecordTooLarge",
    "SharedRagError",
    "UnsupportedFileSystem",
    "UnsupportedPlatform",
    "Where",
]
