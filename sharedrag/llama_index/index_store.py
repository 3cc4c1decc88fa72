"""Index store: LlamaIndex's index structs, one record each, on the key-value store.

Give each index an id (`index.set_index_id("hawaii")`) once there are several in a store: without one,
`load_index_from_storage` loads the only index there is, and fails when there are two.
"""

from __future__ import annotations

import asyncio

from llama_index.core.data_structs.data_structs import IndexStruct
from llama_index.core.storage.index_store.keyval_index_store import KVIndexStore

from sharedrag.llama_index._pools import OnPool, PoolLike, as_pool
from sharedrag.llama_index.kv_store import SharedKVStore


class SharedIndexStore(OnPool, KVIndexStore):
    """LlamaIndex's index store on a pool: `SharedIndexStore(pool_or_path, "indexes")`.

    A struct is stored whole, as core hands it over: of two processes that change one struct, the last wins. That does
    no harm to a `VectorStoreIndex` on a `SharedVectorStore`, whose nodes are found without the struct.
    """

    def __init__(self, pool: PoolLike, collection: str = "default", namespace: str | None = None) -> None:
        """`pool` is a `Pool`, or the path of one, which is created if it is not there."""
        self.pool = as_pool(pool)
        self.collection = collection
        super().__init__(SharedKVStore(self.pool, collection), namespace)

    def get_index_struct(self, struct_id: str | None = None) -> IndexStruct | None:
        """The struct `struct_id`, or None; without an id the only one there is (ValueError when there is not one)."""
        if struct_id is not None:
            return super().get_index_struct(struct_id)
        structs = self.index_structs()
        if len(structs) != 1:
            raise ValueError(f"There are {len(structs)} indexes in {self!r}: say which, by its index_id")
        return structs[0]

    async def aget_index_struct(self, struct_id: str | None = None) -> IndexStruct | None:
        """`get_index_struct` in a thread."""
        return await asyncio.to_thread(self.get_index_struct, struct_id)
