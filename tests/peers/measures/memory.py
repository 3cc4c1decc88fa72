"""What one more reader holds for itself: while another reader has the store open and has asked the same questions.

Private_Clean + Private_Dirty of its smaps, less what the same process held after its imports. Where a store admits one
process only, that process is measured alone, and the figure says so.
"""

from __future__ import annotations

import gc
import time
from typing import Any

from tests.bench.children import Child, Pipe, ask
from tests.peers.corpus import K
from tests.peers.job import Job, rounded, tell
from tests.peers.protocol import ONE

_MB = 1e6
_PATIENCE_S = 120.0


def run(job: Job) -> dict[str, Any]:
    """Figures in MB (10^6 bytes)."""
    alone = job.kind.processes == ONE
    if alone:
        tell("the one reader")
        before, after = ask(_read, job, False)
    else:
        tell("the first reader")
        with Child(_read, job, True) as first:
            first.receive()
            tell("one more reader")
            before, after = ask(_read, job, False)
            first.send("enough")
    found: dict[str, Any] = {"own_mb": rounded((after - before) / _MB), "imports_mb": rounded(before / _MB)}
    if alone:
        found["alone"] = job.kind.why
    return found


def _read(pipe: Pipe, job: Job, stay: bool) -> None:
    queries = job.corpus.queries
    _ = job.kind
    before = private_bytes()
    peer = job.open()
    until = time.monotonic() + job.effort.query_s
    for query in queries[: job.effort.queries]:
        peer.search(query, K)
        if time.monotonic() > until:
            break
    pipe.send((before, private_bytes()))
    if stay:
        pipe.poll(_PATIENCE_S)
    peer.close()


def private_bytes(process: str = "self") -> int:
    """Private_Clean + Private_Dirty of a process, in bytes."""
    gc.collect()
    with open(f"/proc/{process}/smaps_rollup") as file:
        fields = [line.split() for line in file if line.startswith(("Private_Clean:", "Private_Dirty:"))]
    return sum(int(field[1]) for field in fields) * 1024
