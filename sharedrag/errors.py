"""Every error a caller can meet: what failed, where, and what to do about it.

`assert` is kept for our own mistakes; whatever comes from the pool's bytes, the system or a caller raises one of these.
"""

from __future__ import annotations


class SharedRagError(Exception):
    """Base of all errors; `operation`, `path` and `hint` say what was done, on which pool, and what to do now."""

    def __init__(self, what: str, *, operation: str = "", path: str = "", hint: str = "") -> None:
        self.what = what
        self.operation = operation
        self.path = path
        self.hint = hint
        place = f"{operation} {path}".strip()
        super().__init__(": ".join(part for part in (place, what) if part) + (f". {hint}" if hint else ""))

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders (multiprocessing, pipelines) with all their fields."""
        return (_rebuild, (type(self), self.args, self.__dict__.copy()))


def _rebuild(cls: type[SharedRagError], args: tuple[object, ...], fields: dict[str, object]) -> SharedRagError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(fields)
    return error


class PoolNotFound(SharedRagError, FileNotFoundError):
    """No pool at this path, and `create` was not asked for."""


class NotAPool(SharedRagError):
    """The file is something else: it does not begin with a pool's magic."""


class PoolVersionUnsupported(SharedRagError):
    """The pool was made by a version of the format that this one cannot read."""


class PoolTruncated(SharedRagError):
    """The file is shorter than its superblock says."""


class PoolDamaged(SharedRagError):
    """Bytes read from the pool fail their check; `offset` is where, in bytes from the start of the file."""

    HINT = (
        "Run `sharedrag verify` to list what is damaged; then delete the records, drop a collection that cannot be read "
        "any more, or restore the pool from a copy"
    )
    HINT_OPEN = "What every process needs to open the pool is damaged: restore it from a copy (cp --sparse=always)"

    def __init__(self, what: str, *, offset: int, operation: str = "", path: str = "", hint: str = "") -> None:
        self.offset = offset
        hint = hint or (self.HINT_OPEN if operation == "open" else self.HINT)
        super().__init__(f"{what} at offset {offset}", operation=operation, path=path, hint=hint)


class PoolFull(SharedRagError):
    """No room for a new segment, in the pool's budget or in the memory behind it."""


class PoolReplaced(SharedRagError):
    """The file at the pool's path is no longer the one this handle has open."""


class PoolClosed(SharedRagError, ValueError):
    """The handle was closed."""


def pool_closed(path: str) -> PoolClosed:
    """The error for any use after `close`."""
    return PoolClosed("the pool was closed", operation="use", path=path, hint="Open it again with `Pool.open`")


class PoolBusy(SharedRagError, TimeoutError):
    """A lock, lane or session slot was not free in time; the message names who holds it and since when."""


class UnsupportedFileSystem(SharedRagError):
    """The file system cannot hold a pool: no coherent shared mapping, no `fallocate`, or no byte-range locks."""


class UnsupportedPlatform(SharedRagError):
    """The processor or kernel lacks what the pool's memory ordering rests on."""


class CollectionMismatch(SharedRagError, ValueError):
    """The collection exists with another dimension, metric, dtype or embedding model."""


class CollectionNotFound(SharedRagError, KeyError):
    """No collection of that name in the pool."""

    __str__ = Exception.__str__  # KeyError would print the repr of the message


class CollectionDropped(SharedRagError):
    """The collection was dropped while this handle used it."""


class InvalidRecord(SharedRagError, ValueError):
    """A record that cannot be stored or a query vector that cannot be searched."""


class InvalidFilter(SharedRagError, ValueError):
    """A filter that means nothing: an unknown operator, or a value of the wrong kind."""


class RecordTooLarge(SharedRagError, ValueError):
    """A record or batch larger than one segment can ever be."""
