"""Key-value store: one record for each key; many LlamaIndex collections inside one of ours.

| part of a record | what |
| --- | --- |
| id | `<length of the collection's name>:<collection><key>`: unambiguous for any two strings |
| text | the value as JSON |
| metadata | `{"collection": ...}`, by which `get_all` finds its records |
"""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.storage.kvstore.types import DEFAULT_BATCH_SIZE, DEFAULT_COLLECTION, BaseKVStore

from sharedrag import Collection
from sharedrag.filters import Where
from sharedrag.llama_index._json import dumps, loads
from sharedrag.llama_index._pools import OnPool, PoolLike, as_pool


class SharedKVStore(OnPool, BaseKVStore):
    """LlamaIndex's key-value store on a pool: `SharedKVStore(pool_or_path, "cache")`; fit for `IngestionCache`.

    Keys are any strings that are valid Unicode. Values are dicts of JSON values (what else JSON can spell, such as
    datetimes and sets, comes back as it was spelt); each call returns fresh copies. Any number of processes may use it
    at once; the last write of a key wins.
    """

    def __init__(self, pool: PoolLike, collection: str = "default") -> None:
        """`pool` is a `Pool`, or the path of one, which is created if it is not there."""
        self.pool = as_pool(pool)
        self.collection = collection

    def _records(self) -> Collection:
        return self.pool.collection(f"{self.collection}.kv")

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Store `val` under `key`; raises `InvalidRecord` for what JSON cannot express."""
        self.put_all([(key, val)], collection)

    def put_all(
        self,
        kv_pairs: list[tuple[str, dict[str, Any]]],
        collection: str = DEFAULT_COLLECTION,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> None:
        """Store all pairs in one batch that others see at once or not at all.

        `batch_size` is accepted and not needed: smaller batches would be slower, and visible in part.
        """
        pairs = list(kv_pairs)
        self._records().put(
            [_record_id(collection, key) for key, _ in pairs],
            texts=[dumps(value) for _, value in pairs],
            metadata=[{"collection": collection}] * len(pairs),
        )

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """A fresh copy of the value under `key`, or None."""
        record = self._records().get([_record_id(collection, key)])[0]
        return None if record is None else loads(record.text or "null")

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """Fresh copies of all values of `collection` by key, in the order of their last writes."""
        start = len(_record_id(collection, ""))
        found = self._records().find(Where("collection", "==", collection))
        return {record.id[start:]: loads(record.text or "null") for record in found}

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Delete `key`; whether it was there."""
        return self._records().delete([_record_id(collection, key)]) > 0

    async def aput(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """`put` in a thread."""
        await asyncio.to_thread(self.put, key, val, collection)

    async def aput_all(
        self,
        kv_pairs: list[tuple[str, dict[str, Any]]],
        collection: str = DEFAULT_COLLECTION,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> None:
        """`put_all` in a thread."""
        await asyncio.to_thread(self.put_all, kv_pairs, collection, batch_size)

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """`get` in a thread."""
        return await asyncio.to_thread(self.get, key, collection)

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """`get_all` in a thread."""
        return await asyncio.to_thread(self.get_all, collection)

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """`delete` in a thread."""
        return await asyncio.to_thread(self.delete, key, collection)


def _record_id(collection: str, key: str) -> str:
    return f"{len(collection)}:{collection}{key}"
