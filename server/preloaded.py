"""Imported once, by the process that `serve` forks its workers from: they share the pages of all that this imports.

Nothing here may start a thread, open the pool or read the settings.
"""

from __future__ import annotations

import gc

import server.app  # noqa: F401

gc.collect()
gc.freeze()  # a collection in a worker must not write into the pages of what is imported, or it has them for itself
