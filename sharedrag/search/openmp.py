"""How many threads FAISS may use for what one thread calls; OpenMP keeps the number for each thread of a process.

Threads that work together wait for each other by spinning. On a machine whose cores are busy, with other workers for one,
a spinning one takes the core from the one it waits for: a scan of 20,000 rows took 41 ms with two threads, and 0.9 with one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import faiss

_WORTH_SHARING = 1 << 27  # multiplications, some 30 ms of work, from which threads pay on a busy machine as well
_NEVER_SHARED = 4096  # rows that FAISS compares with one query in one thread anyway
_AS_IT_IS = nullcontext()


class Threads:
    """FAISS may use so many threads in this block.

    Never more than it may use now: in the child of a process whose OpenMP threads ran, that is one, and two hang.
    """

    __slots__ = ("_before", "_count")

    def __init__(self, count: int) -> None:
        self._count = count

    def __enter__(self) -> None:
        self._before = faiss.omp_get_max_threads()
        if self._count < self._before:
            faiss.omp_set_num_threads(self._count)

    def __exit__(self, *_: object) -> None:
        if self._count < self._before:
            faiss.omp_set_num_threads(self._before)


def of_scan(queries: int, rows: int, dimension: int) -> AbstractContextManager[None]:
    """As many threads as are worth it to compare each query with each row. One query is never shared."""
    shared = queries > 1 and queries * rows * dimension >= _WORTH_SHARING
    return _AS_IT_IS if shared or (queries == 1 and rows <= _NEVER_SHARED) else Threads(1)
