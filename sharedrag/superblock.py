"""What a pool file says of itself: made whole before it has a name, read and checked at every open."""

from __future__ import annotations

import errno
import os
import stat
import time
import uuid
from pathlib import Path

import xxhash

from sharedrag import layout, order, region
from sharedrag.errors import (
    PoolDamaged,
    PoolNotFound,
    PoolTruncated,
    PoolVersionUnsupported,
    SharedRagError,
    UnsupportedFileSystem,
)
from sharedrag.layout import Geometry


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


def create(path: str, capacity: int, nodes: int) -> None:
    """Make a whole new pool and give it its name in one step; a pool that is there already stays as it is.

    Raises `UnsupportedFileSystem` or `PoolFull`.
    """
    geometry = layout.plan(capacity, nodes, time.time_ns() // 1000, uuid.uuid4().bytes)
    folder = os.path.dirname(path)
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o660)
    except FileNotFoundError:
        raise PoolNotFound(f"no folder {folder}", operation="create", path=path, hint="Make the folder first") from None
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise SharedRagError(
                error.strerror or str(error), operation="create", path=path, hint="Choose a folder you may write"
            ) from error
        kind = region.file_system_of(folder)
        raise UnsupportedFileSystem(
            f"{kind or 'it'} has no O_TMPFILE", operation="create", path=path, hint=region._LOCAL_ONLY
        ) from None
    try:
        try:
            os.ftruncate(fd, geometry.file_size)
        except OSError as error:
            raise UnsupportedFileSystem(
                f"no sparse file of {geometry.file_size:,} bytes ({error.strerror})",
                operation="create",
                path=path,
                hint="Choose a smaller capacity",
            ) from None
        try:
            mapped = region.Region(os.dup(fd), path, geometry.file_size)
        except OSError as error:
            raise UnsupportedFileSystem(
                f"no mapping of {geometry.file_size:,} bytes ({error.strerror})",
                operation="create",
                path=path,
                hint="Choose a smaller capacity",
            ) from None
        try:
            _fill(mapped, geometry)
        finally:
            mapped.close()
        try:
            # src_dir_fd makes Python use linkat, the only call that follows /proc's link to a nameless file
            os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
        except FileExistsError:
            return  # another process was first; open theirs
        except OSError as error:
            raise region.unusable(path, error) from error
    finally:
        os.close(fd)


def _fill(mapped: region.Region, geometry: Geometry) -> None:
    from sharedrag import manifest  # the first manifest of each node; manifest needs the region, not this module

    mapped.reserve(0, layout.SUPERBLOCK_SIZE, operation="create")
    head = encode(geometry)
    mapped.bytes[: len(head)] = head
    for node in range(geometry.nodes):
        start = geometry.node_offset(node)
        mapped.reserve(start, layout.NODE_AREA_SIZE, operation="create")
        mapped.words[(start + layout.HORIZON_OFFSET) >> 3] = order.checked(0)
        for generation in (0, 1):
            mapped.reserve(geometry.manifest_offset(node, generation), layout.MANIFEST_RESERVED, operation="create")
        rescue = geometry.extents_per_node - geometry.rescue_extents
        mapped.reserve(
            geometry.extent_offset(node, rescue), geometry.rescue_extents * layout.EXTENT_SIZE, operation="create"
        )
        manifest.publish(mapped, geometry, manifest.Manifest.empty(node))
