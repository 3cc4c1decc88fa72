"""Imported once, by the process that `serve` forks its workers from: they share the pages of all that this imports.

Nothing that is imported here may open the pool, read the settings or start a thread that does not survive a fork (those of
OpenBLAS and jemalloc see to it themselves; ONNX's and OpenMP's would not, and start only in workers).
"""

from __future__ import annotations

import gc
import importlib
import os
import signal

from server import process


def _preload() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for `serve`, which ends its workers
    process.forked_by = os.getpid()
    importlib.import_module("server.app")
    importlib.import_module("sharedrag.cli")  # multiprocessing has each worker run the command's script again, to its end
    gc.collect()
    gc.freeze()  # a collection in a worker must not write into the pages of what is imported, or it has them for itself


_preload()
