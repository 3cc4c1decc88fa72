"""The mapped bytes of a pool and the memory behind them: the one class that a devdax device or famfs file would replace.

Nothing touches memory that was not reserved: reading a hole of a tmpfs file allocates it, and kills the reader when
/dev/shm is full. `reserve` uses the raw `fallocate` (glibc's emulation writes over other processes' bytes).

On tmpfs, memory is asked for in huge pages where a whole one fits (MADV_COLLAPSE, Linux 6.1, which needs no mount option):
getting and mapping it costs a sixth, and a process that opens the pool maps it with one page fault for 2 MiB, not 512. For
that the mapping starts at a multiple of 2 MiB.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sharedrag.errors import NotAPool, PoolFull, PoolReplaced, PoolTruncated, SharedRagError, UnsupportedFileSystem
from sharedrag.memory import layout
from sharedrag.memory.layout import HUGE_PAGE

_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2
_MADV_POPULATE_WRITE, _MADV_COLLAPSE = 23, 25
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_MAP_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

LOCAL_ONLY = "Put the pool on tmpfs (/dev/shm) or a local ext4 or xfs disk"
_REFUSED = {
    "overlay": "copies a file up on first write, so two containers may map different files",
    "nfs": "has no coherent shared mapping between hosts",
    "nfs4": "has no coherent shared mapping between hosts",
    "cifs": "has no coherent shared mapping between hosts",
    "smb3": "has no coherent shared mapping between hosts",
    "9p": "has no coherent shared mapping",
    "ceph": "has no coherent shared mapping between hosts",
    "fuse.sshfs": "has no coherent shared mapping",
    "fuse.glusterfs": "has no coherent shared mapping",
    "afs": "has no coherent shared mapping",
    "vfat": "has no fallocate",
}


def file_system_of(folder: str) -> str:
    """The type of the file system that holds a folder, as /proc/self/mountinfo names it; "" where that is unreadable."""
    try:
        device = os.stat(folder).st_dev
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    number = f"{os.major(device)}:{os.minor(device)}"
    found = ""
    for line in lines:
        left, _, right = line.partition(" - ")
        if left.split()[2] == number:
            found = right.split()[0]
    return found


def refuse_unsuitable_file_system(path: str) -> None:
    """Raise `UnsupportedFileSystem` for network file systems and overlayfs, with the reason."""
    kind = file_system_of(os.path.dirname(path) or ".")
    if kind in _REFUSED:
        raise UnsupportedFileSystem(f"{kind} {_REFUSED[kind]}", operation="open", path=path, hint=LOCAL_ONLY)


def memory_headroom() -> int | None:
    """Bytes that this process's memory cgroup may still take, or None without a limit.

    Beyond it the kernel kills the process instead of failing the reservation.
    """
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            allowed = Path(limit).read_text().strip()
            if allowed != "max" and int(allowed) < 1 << 60:
                return max(0, int(allowed) - int(Path(usage).read_text()))
        except (OSError, ValueError):
            continue
    return None


def _mapped(fd: int, size: int) -> memoryview:
    """A shared, writable mapping of the file that begins at a multiple of the huge page's size, where one can be had.

    It lies over a part of an anonymous mapping, as whose part it goes when the last view of it does.
    """
    readable = mmap.PROT_READ | mmap.PROT_WRITE
    try:
        around = mmap.mmap(-1, size + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, readable)
    except OSError:  # the system does not give address space on trust
        return memoryview(mmap.mmap(fd, size, mmap.MAP_SHARED, readable))
    start = int(np.frombuffer(around, dtype=np.uint8).ctypes.data)
    shift = -start % HUGE_PAGE
    if _libc.mmap(start + shift, size, readable, mmap.MAP_SHARED | _MAP_FIXED, fd, 0) == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return memoryview(around)[shift : shift + size]


class Region:
    """A shared, writable mapping of a whole pool file.

    Attributes: `bytes` (memoryview "B"), `words` (memoryview "Q": item i is the aligned u64 at offset 8 i; see `order`),
    `array` (uint8 array over the same memory), `address` (of byte 0), `size` (bytes). Of a region that `keeps_memory`, all
    memory is reserved once and never given back: `reserve` and `punch` do nothing then, and new memory is not zero.
    """

    def __init__(self, fd: int, path: str, size: int, *, keeps_memory: bool = False) -> None:
        self.path = path
        self.keeps_memory = keeps_memory
        self.size = size
        self._fd = fd
        self.bytes = _mapped(fd, size)
        self.words = self.bytes.cast("Q")
        self.array: npt.NDArray[np.uint8] = np.frombuffer(self.bytes, dtype=np.uint8)
        self.address = int(self.array.ctypes.data)
        kind = file_system_of(os.path.dirname(path) or ".")
        self._on_disk = kind not in ("tmpfs", "ramfs", "hugetlbfs")
        self._huge_pages = kind == "tmpfs" and self.address % HUGE_PAGE == 0
        stat = os.fstat(fd)
        self.identity = (stat.st_dev, stat.st_ino)

    @classmethod
    def open(cls, path: str, size_expected: int, *, keeps_memory: bool = False) -> Region:
        """Map an existing pool file; its size must be the one its superblock tells."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise unusable(path, error) from error
        size = os.fstat(fd).st_size
        if size < size_expected:
            os.close(fd)
            raise PoolTruncated(
                f"the file has {size:,} bytes, its superblock says {size_expected:,}",
                operation="open",
                path=path,
                hint="Something cut the file while nobody should; restore it from a copy",
            )
        return cls(fd, path, size_expected, keeps_memory=keeps_memory)

    def reserve(self, offset: int, length: int, *, operation: str) -> None:
        """Make memory stand behind the bytes [offset, offset + length), so that touching them cannot fail.

        Raises `PoolFull` when the file system or the memory cgroup has no room, `UnsupportedFileSystem` without fallocate.
        """
        if self.keeps_memory:
            return
        headroom = memory_headroom()
        if headroom is not None and length > headroom:
            raise PoolFull(
                f"{length:,} bytes wanted, the memory cgroup has {headroom:,} left",
                operation=operation,
                path=self.path,
                hint="Raise the container's memory limit, or delete records and run `sharedrag maintain`",
            )
        if self._huge_pages and length <= self._free_memory():
            self._take_huge_pages(offset, length)
        if _libc.fallocate(self._fd, 0, offset, length) == 0:
            return
        code = ctypes.get_errno()
        if code == errno.EINTR:
            self.reserve(offset, length, operation=operation)
            return
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise UnsupportedFileSystem("no fallocate", operation=operation, path=self.path, hint=LOCAL_ONLY)
        raise PoolFull(
            f"{length:,} bytes wanted, the file system has {self._free_memory():,} left ({os.strerror(code)})",
            operation=operation,
            path=self.path,
            hint="Enlarge it (Docker's /dev/shm is 64 MiB unless --shm-size is given), or delete records and "
            "run `sharedrag maintain`",
        )

    def _free_memory(self) -> int:
        """Bytes that the file system has left."""
        free = os.statvfs(os.path.dirname(self.path) or ".")
        return free.f_bavail * free.f_frsize

    def _take_huge_pages(self, offset: int, length: int) -> None:
        """Put huge pages behind what of the range whole ones fit in; what cannot be had so is left to `fallocate`."""
        start, stop = -(-offset // HUGE_PAGE) * HUGE_PAGE, (offset + length) // HUGE_PAGE * HUGE_PAGE
        for at in range(start, stop, HUGE_PAGE):
            if _libc.fallocate(self._fd, 0, at, layout.PAGE) != 0:  # a page is collapsed from at least one small one
                return
        if start < stop and _libc.madvise(self.address + start, stop - start, _MADV_COLLAPSE) != 0:
            self._huge_pages = ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS)  # an old kernel, or forbidden

    def populate(self, offset: int, length: int) -> None:
        """Map the pages ahead of use; a kernel without MADV_POPULATE_WRITE maps them on first touch instead.

        Not `mmap.madvise`, which keeps the interpreter locked meanwhile.
        """
        _libc.madvise(self.address + offset, length, _MADV_POPULATE_WRITE)

    def punch(self, offset: int, length: int) -> None:
        """Give the memory behind whole pages back to the system; the bytes then read as zero once reserved again."""
        assert offset % layout.PAGE == 0 and length % layout.PAGE == 0
        if self.keeps_memory:
            return
        if _libc.fallocate(self._fd, _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, offset, length) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), self.path)

    def allocated(self) -> int:
        """Bytes of memory (or disk) behind the whole file now."""
        return os.fstat(self._fd).st_blocks * 512

    def sync(self) -> None:
        """Bring everything to disk, before what replaces it is given back; nothing to do on tmpfs."""
        if self._on_disk:
            os.fdatasync(self._fd)

    def check_not_replaced(self) -> None:
        """Raise `PoolReplaced` if the path no longer leads to this file."""
        try:
            stat = os.stat(self.path)
            same = (stat.st_dev, stat.st_ino) == self.identity
        except FileNotFoundError:
            same = False
        if not same:
            raise PoolReplaced(
                "the file at this path was deleted or replaced while open",
                operation="refresh",
                path=self.path,
                hint="Close this handle and open the pool again; what it held is still in the old file until then",
            )

    def close(self) -> None:
        """Close the descriptor and, when nobody looks at it any more, the mapping."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        # Views that callers still hold keep the mapping alive; it goes with the last of them.


def unusable(path: str, error: OSError) -> SharedRagError:
    """The error for a file that the system does not let us open, read and write."""
    hint = "Pools are read and written: give this user both rights, or choose another path"
    return SharedRagError(error.strerror or str(error), operation="open", path=path, hint=hint)


def foreign(path: str, what: str) -> NotAPool:
    """The error for a file that is no pool."""
    return NotAPool(what, operation="open", path=path, hint="Check the path; a pool is made with `sharedrag create PATH`")
