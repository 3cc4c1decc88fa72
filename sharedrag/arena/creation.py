"""Making a pool: whole before it has a name, so that of several who make it at once one wins and none sees a half."""

from __future__ import annotations

import errno
import os
import time
import uuid

from sharedrag.arena import manifest
from sharedrag.errors import PoolNotFound, SharedRagError, UnsupportedFileSystem
from sharedrag.memory import layout, order, region, superblock
from sharedrag.memory.layout import Geometry


def create(path: str, capacity: int, nodes: int, preallocate: bool) -> None:
    """Make a whole new pool and give it its name in one step; a pool that is there already stays as it is.

    Raises `UnsupportedFileSystem` or `PoolFull`.
    """
    geometry = layout.plan(capacity, nodes, time.time_ns() // 1000, uuid.uuid4().bytes, preallocate)
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
            f"{kind or 'it'} has no O_TMPFILE", operation="create", path=path, hint=region.LOCAL_ONLY
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
    if geometry.preallocated:
        mapped.reserve(0, geometry.file_size, operation="create")
        mapped.populate(0, geometry.file_size)
        mapped.keeps_memory = True
    mapped.reserve(0, layout.SUPERBLOCK_SIZE, operation="create")
    head = superblock.encode(geometry)
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
