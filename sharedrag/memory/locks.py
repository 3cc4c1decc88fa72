"""Kernel byte-range locks (OFD) on the pool's own file: the dead hold nothing, whatever killed them.

A lock belongs to the *open file*, not to the process: two threads of one handle do not exclude each other (so whoever
takes one holds an in-process lock as well), and a forked child shares its parent's until it closes the descriptor.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable

from sharedrag.errors import PoolBusy, PoolReplaced, UnsupportedFileSystem, pool_closed

_F_OFD_GETLK, _F_OFD_SETLK = 36, 37  # the fcntl module names them only from Python 3.12 on some builds
_FLOCK = struct.Struct("hhqqi4x")  # native alignment: 4 bytes of padding after the two shorts
assert _FLOCK.size == 32

_POLL_FIRST_S = 0.0001
_POLL_MAX_S = 0.005
_COUNTED_MAX_S = 0.1  # of one poll: what is beyond is not waiting but being stopped


class LockFile:
    """One open file whose byte locks live and die together.

    The descriptor is separate from the mapping's: a mapping keeps its open file, and so its locks, alive.
    """

    def __init__(self, path: str, identity: tuple[int, int] | None = None) -> None:
        """Open the file anew; raises `PoolReplaced` if the path leads to another file than `identity` (device, inode)."""
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        stat = os.fstat(self._fd)
        if identity not in (None, (stat.st_dev, stat.st_ino)):
            self.close()
            raise PoolReplaced(
                "the file at this path was replaced meanwhile", operation="lock", path=path, hint="Open the pool again"
            )

    def try_lock(self, offset: int) -> bool:
        """Take the byte at `offset` exclusively; False at once if another open file holds it. Raises `PoolClosed`."""
        try:
            fcntl.fcntl(self._open_fd(), _F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def lock(self, offset: int, timeout_s: float, describe: Callable[[], str], operation: str) -> None:
        """Take the byte within `timeout_s`; raise `PoolBusy` with `describe()`, who holds it, after that.

        Counted is the time in which this process looked: if it, or the whole machine, was stopped meanwhile, so may the
        holder have been.
        """
        if self.try_lock(offset):
            return
        waited_s, wait_s = 0.0, _POLL_FIRST_S
        before = time.monotonic()
        while True:
            time.sleep(wait_s)
            if self.try_lock(offset):
                return
            now = time.monotonic()
            waited_s += min(now - before, _COUNTED_MAX_S)
            before = now
            if waited_s >= timeout_s:
                raise PoolBusy(
                    f"not free within {timeout_s:g} s: {describe()}",
                    operation=operation,
                    path=self.path,
                    hint="If that process is stopped (SIGSTOP, a debugger), continue or kill it; its lock goes with it",
                )
            wait_s = min(_POLL_MAX_S, wait_s * 2)

    def unlock(self, offset: int) -> None:
        """Release the byte; `close` has released all."""
        if self._fd < 0:
            return
        fcntl.fcntl(self._fd, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, offset, 1, 0))

    def held_elsewhere(self, offset: int) -> bool:
        """True if another open file holds the byte (this one's own locks do not count). Raises `PoolClosed`."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
        answer = fcntl.fcntl(self._open_fd(), _F_OFD_GETLK, asked)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise pool_closed(self.path)
        return self._fd

    def close(self) -> None:
        """Close the descriptor; the locks go unless a forked child still has it."""
        if self._fd >= 0:
            closing, self._fd = self._fd, -1
            os.close(closing)


def check_locks_work(path: str, offset: int) -> None:
    """Raise `UnsupportedFileSystem` unless a lock of one open file is seen by another, at that very byte.

    A wrong packing of `struct flock` is accepted by the kernel and locks other bytes, so this asks rather than trusts.
    """
    first, second = LockFile(path), LockFile(path)
    try:
        if first.held_elsewhere(offset) or not first.try_lock(offset):
            return  # somebody else's lock was seen: they work
        if not second.held_elsewhere(offset) or second.held_elsewhere(offset + 1):
            raise UnsupportedFileSystem(
                "byte-range locks of one open file are not seen by another",
                operation="open",
                path=path,
                hint="Put the pool on tmpfs (/dev/shm) or a local ext4 or xfs disk",
            )
        first.unlock(offset)
    finally:
        first.close()
        second.close()
