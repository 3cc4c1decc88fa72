"""What all stores share: the pool behind them, given as a handle or a path, and how it crosses to another process.

A path is opened once per process, and all stores of the process on it share that handle, hence one session and one
lane; it stays open until it is closed (`store.pool.close()`) or the process ends. Pickles, dumps and `to_dict` of a
store name the pool (its path and node) and hold nothing of its contents: whoever reads them opens that pool, if it is
not open already.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeAlias

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from sharedrag import Pool
from sharedrag.pool import shared

DEFAULT_CAPACITY = "2 GiB"
PoolLike: TypeAlias = Pool | str | os.PathLike[str] | Mapping[str, Any]


def as_pool(given: PoolLike) -> Pool:
    """The pool that a store was given: a handle as it is, a path opened (and created), a reference followed."""
    if isinstance(given, Pool):
        return given
    if isinstance(given, Mapping):
        return shared(given["path"], given["node"], create=True, capacity=DEFAULT_CAPACITY)
    return shared(given, create=True, capacity=DEFAULT_CAPACITY)


def reference(pool: Pool) -> str | dict[str, Any]:
    """What names the pool in JSON: its path, with the node where that is not the first."""
    return pool.path if pool.node == 0 else {"path": pool.path, "node": pool.node}


PoolField: TypeAlias = Annotated[
    Pool, BeforeValidator(as_pool), PlainSerializer(reference), WithJsonSchema({"type": "string"})
]


class FromParams:
    """The second way to build a store, for whoever wants to say how the pool is opened."""

    @classmethod
    def from_params(
        cls,
        path: str | os.PathLike[str],
        collection: str = "default",
        *,
        create: bool = True,
        capacity: str | int = DEFAULT_CAPACITY,
        node: int = 0,
        nodes: int = 1,
        **options: Any,
    ) -> Self:
        """The store on the pool at `path`, opened (or made) as `Pool.open` does with these.

        A pool that this process already has open by its path is used as it is. `options` are the class's own.
        Raises what `Pool.open` raises.
        """
        pool = shared(path, node, create=create, capacity=capacity, nodes=nodes)
        return cls(pool, collection, **options)  # type: ignore[call-arg]


class OnPool(FromParams):
    """A store that is no pydantic model: `Class(pool, collection)`, picklable."""

    pool: Pool
    collection: str

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.pool.path!r}, {self.collection!r})"
