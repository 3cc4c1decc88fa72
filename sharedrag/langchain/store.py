"""LangChain's key-value stores on a pool: bytes (what caches and document stores are built on), and JSON values.

The key is the record's id. `SharedRagByteStore` keeps bytes in the collection `<collection>.bytes`: those that are UTF-8
as the record's text, others as text in base64, which the metadata `{"encoding": "base64"}` tells. `SharedRagStore` keeps
values as JSON texts in `<collection>.json`.

Most values are JSON or other text, and such bytes are stored as they are, at no cost and readable for everybody.
"""

from __future__ import annotations

import base64
import os
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from langchain_core.runnables import run_in_executor
from langchain_core.stores import BaseStore

from sharedrag import Collection, Pool, Record
from sharedrag.langchain._json import dumps, loads
from sharedrag.langchain._pools import as_pool

V = TypeVar("V")
_BASE64 = {"encoding": "base64"}


class _SharedStore(BaseStore[str, V]):
    """Keys are strings of 1 to 65,536 bytes. What one process sets, the others get in their next call."""

    _suffix: ClassVar[str]

    def __init__(self, pool: Pool | str | os.PathLike[str], collection: str = "default") -> None:
        """`pool` is a `Pool`, or the path of one, which is created if it is not there."""
        self.pool = as_pool(pool)
        self.collection = collection

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.pool.path!r}, {self.collection!r})"

    def _records(self) -> Collection:
        return self.pool.collection(f"{self.collection}.{self._suffix}")

    @abstractmethod
    def _encode(self, value: V) -> tuple[str, dict[str, Any] | None]:
        """The text and metadata that hold a value."""

    @abstractmethod
    def _decode(self, record: Record) -> V:
        """The value that a record holds."""

    def mget(self, keys: Sequence[str]) -> list[V | None]:
        """The keys' values, None where there is none, all as of one moment."""
        return [None if one is None else self._decode(one) for one in self._records().get(keys)]

    def mset(self, key_value_pairs: Sequence[tuple[str, V]]) -> None:
        """Set the values of all these keys, in one step. Raises what `Collection.put` raises."""
        encoded = [self._encode(value) for _, value in key_value_pairs]
        self._records().put(
            [key for key, _ in key_value_pairs],
            texts=[text for text, _ in encoded],
            metadata=[metadata for _, metadata in encoded],
        )

    def mdelete(self, keys: Sequence[str]) -> None:
        """Delete these keys, in one step; those that are not there are none the worse."""
        self._records().delete(keys)

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """The keys that begin with `prefix`, as they are when the first is asked for, oldest value first."""
        table = self._records().scan(columns=["id", "key"]).sort_by("key")
        yield from (key for key in table.column("id").to_pylist() if prefix is None or key.startswith(prefix))

    async def ayield_keys(self, *, prefix: str | None = None) -> AsyncIterator[str]:
        """`yield_keys` in a thread, all at once."""
        for key in await run_in_executor(None, lambda: list(self.yield_keys(prefix=prefix))):
            yield key


class SharedRagByteStore(_SharedStore[bytes]):
    """LangChain's `ByteStore` on a pool: `SharedRagByteStore(pool_or_path, "cache")`."""

    _suffix = "bytes"

    def _encode(self, value: bytes) -> tuple[str, dict[str, Any] | None]:
        try:
            return str(value, "utf-8"), None
        except UnicodeDecodeError:
            return base64.b64encode(value).decode(), _BASE64

    def _decode(self, record: Record) -> bytes:
        text = (record.text or "").encode()
        return base64.b64decode(text) if record.metadata == _BASE64 else text


class SharedRagStore(_SharedStore[Any]):
    """LangChain's `BaseStore` of JSON values on a pool: `SharedRagStore(pool_or_path, "settings")`.

    Each `mget` returns fresh values. Tuples come back as lists, datetimes and UUIDs as strings, keys of dicts as strings.
    """

    _suffix = "json"

    def _encode(self, value: Any) -> tuple[str, dict[str, Any] | None]:
        return dumps(value), None

    def _decode(self, record: Record) -> Any:
        return loads(record.text or "null")
