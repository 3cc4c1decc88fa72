"""The only ordered loads and stores: shared words, their checks, and the fence of the rare side.

A *shared word* is one aligned u64 that another process may read while it is stored. Item access on a
`memoryview` cast to "Q" compiles to one 8-byte mov; x86-64 keeps stores in program order, and loads too (TSO), so
"payload, then watermark" holds without a fence. Two rules follow:

- never `struct.pack_into` on a shared word: it stores zeros first, and readers see them;
- a store followed by a load of another word may be reordered. Who needs that order (a reader: pin, then root; a writer:
  intent, then horizon) does not pay: the other, rare side calls `fence_all_processes()` between its store and its loads.

A word that decides what is visible carries its own check, so that damage is found rather than believed:

    63      55 54                                                    0
    +---------+------------------------------------------------------+
    | check 9 | value, 55 bits                                       |   check = value % 491 + 1
    +---------+------------------------------------------------------+

491 is a prime above 255 for which no change of one byte, not even of the one that value and check share, leaves both
in agreement; and no valid word is 0.
"""

from __future__ import annotations

import ctypes
import platform
import sys
import time

import numpy as np
import numpy.typing as npt

from sharedrag.errors import UnsupportedPlatform

VALUE_BITS = 55
VALUE_MASK = (1 << VALUE_BITS) - 1
CHECK_PRIME = 491

_SYS_MEMBARRIER = 324  # x86-64
_MEMBARRIER_CMD_QUERY = 0
_MEMBARRIER_CMD_GLOBAL = 1
_QUARANTINE_S = 0.02  # far longer than any store buffer holds a store while its processor runs

_libc = ctypes.CDLL(None, use_errno=True)


def checked(value: int) -> int:
    """The shared word that carries `value` (0 <= value < 2**55) and its check."""
    return value | (value % CHECK_PRIME + 1) << VALUE_BITS


def is_checked(word: int) -> bool:
    """True if and only if `word` is what `checked` makes of some value."""
    value = word & VALUE_MASK
    return word >> VALUE_BITS == value % CHECK_PRIME + 1


def are_checked(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """`is_checked` for an array of words of any shape."""
    values = words & VALUE_MASK
    result: npt.NDArray[np.bool_] = (words >> VALUE_BITS) == values % CHECK_PRIME + 1
    return result


def are_words(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """`checked` for an array of values of any shape."""
    result: npt.NDArray[np.uint64] = np.bitwise_or(values, (values % CHECK_PRIME + 1) << VALUE_BITS, dtype=np.uint64)
    return result


def require_ordered_platform() -> None:
    """Raise `UnsupportedPlatform` unless plain stores are seen by others in program order here."""
    machine = platform.machine().lower()
    if machine not in ("x86_64", "amd64") or sys.byteorder != "little" or sys.maxsize < 2**62:
        raise UnsupportedPlatform(
            f"processor {machine!r} does not keep plain stores in order",
            operation="open",
            hint="CPython gives no release stores; this version needs x86-64",
        )
    if not sys.platform.startswith("linux"):
        raise UnsupportedPlatform(f"system {sys.platform!r}", operation="open", hint="OFD locks and fallocate need Linux")


def _has_membarrier() -> bool:
    supported: int = _libc.syscall(_SYS_MEMBARRIER, _MEMBARRIER_CMD_QUERY, 0, 0)
    return supported > 0 and bool(supported & _MEMBARRIER_CMD_GLOBAL)


_membarrier_works = _has_membarrier()


def fence_all_processes() -> None:
    """Every store made before this call is visible to, and every store buffer drained of, all running processes.

    The expensive half of an asymmetric Dekker fence (Dice, Huang & Yang, "Asymmetric Dekker Synchronization", 2001):
    `membarrier`, or where the kernel refuses it a quarantine that no store buffer outlasts.
    """
    if not _membarrier_works or _libc.syscall(_SYS_MEMBARRIER, _MEMBARRIER_CMD_GLOBAL, 0, 0) != 0:
        time.sleep(_QUARANTINE_S)
