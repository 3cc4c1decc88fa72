"""What a pool file says of itself: read and checked at every open."""

from __future__ import annotations

import os
import stat
import uuid
from pathlib import Path

import xxhash

from sharedrag.errors import (
    PoolDamaged,
    PoolNotFound,
    PoolTruncated,
    PoolVersionUnsupported,
)
from sharedrag.memory import layout, region
from sharedrag.memory.layout import Geometry


def boot_id() -> bytes:
    """The kernel's id of this boot, 16 bytes."""
    try:
        return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes
    except (OSError, ValueError):
        return bytes(16)


def encode(geometry: Geometry) -> bytes:
    """The superblock's bytes, checksum included."""
    body = layout.SUPERBLOCK.pack(
        layout.MAGIC,
        layout.VERSION,
        geometry.nodes,
        geometry.file_size,
        geometry.node_stride,
        geometry.manifest_slot_size,
        geometry.extents_offset,
        geometry.extents_per_node,
        geometry.created_us,
        geometry.uuid,
        geometry.preallocated,
    )
    return body + layout.SUPERBLOCK_CHECKSUM.pack(xxhash.xxh3_64_intdigest(body))


def read(path: str) -> Geometry:
    """The geometry of the pool at `path`.

    Raises `PoolNotFound`, `NotAPool`, `PoolVersionUnsupported`, `PoolTruncated` or `PoolDamaged`.
    """
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind):  # before it is opened: that would wait for a pipe's writer
            raise region.foreign(path, "a directory" if stat.S_ISDIR(kind) else "a device, pipe or socket")
        with open(path, "rb") as file:
            head = file.read(layout.SUPERBLOCK.size + layout.SUPERBLOCK_CHECKSUM.size)
    except (FileNotFoundError, NotADirectoryError):
        raise PoolNotFound(
            "no such file", operation="open", path=path, hint="Make it: `create=True` or `sharedrag create PATH`"
        ) from None
    except OSError as error:
        raise region.unusable(path, error) from error
    if head[:7] != layout.MAGIC[:7]:
        raise region.foreign(path, "an empty file" if not head else f"begins with {head[:8]!r}, not with a pool's magic")
    if len(head) < layout.SUPERBLOCK.size + layout.SUPERBLOCK_CHECKSUM.size:
        raise PoolTruncated("cut within the superblock", operation="open", path=path, hint="Restore it from a copy")
    body = head[: layout.SUPERBLOCK.size]
    magic, version, *rest = layout.SUPERBLOCK.unpack(body)
    (checksum,) = layout.SUPERBLOCK_CHECKSUM.unpack(head[layout.SUPERBLOCK.size :])
    if checksum != xxhash.xxh3_64_intdigest(body):
        raise PoolDamaged(
            "the superblock's checksum is wrong", offset=0, operation="open", path=path, hint="Restore it from a copy"
        )
    if magic != layout.MAGIC or version != layout.VERSION:
        raise PoolVersionUnsupported(
            f"format version {version}, this package reads {layout.VERSION}",
            operation="open",
            path=path,
            hint="Use the version of sharedrag that made it",
        )
    return Geometry(*rest)
