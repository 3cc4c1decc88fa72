"""`python -m tests.bench_page`: how soon the page is there, how much it is, and what its map costs the server.

The first paint is measured by chromium itself, on localhost, with nothing kept from before. The map's share of a core is
the processor time of the server's one worker, by the kernel's count, while one page watches a pool of 100,000 rows, less
what the same worker takes in as many seconds while nobody watches. Beside it stands what one look costs in a process that
does nothing else (`PoolWatch.sample`): that is the floor.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table

from sharedrag import Pool
from sharedrag.watch import PoolWatch
from tests.server.browsing import CHROMIUM, Person, chromium
from tests.server.serving import Crowd, Serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROWS, DIMENSION, BATCH = 100_000, 384, 1000
PAINT_MAX_MS, BYTES_MAX, SHARE_MAX, LOOKS_MIN = 1000.0, 300_000, 0.03, 2.0
VISITS = 5
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def fill(path: str, rows: int) -> None:
    """Rows with vectors, texts and metadata in a collection, cared for until nothing is left to do."""
    generator = np.random.default_rng(1)
    with Pool.open(path, create=True, capacity="1 GiB", name="bench", maintenance=False) as pool:
        collection = pool.collection("documents", dimension=DIMENSION)
        for start in range(0, rows, BATCH):
            ids = [f"d{number}" for number in range(start, start + BATCH)]
            texts = [
                f"What is known of place {number % 997} and thing {number % 101}" for number in range(start, start + BATCH)
            ]
            vectors = generator.standard_normal((BATCH, DIMENSION)).astype(np.float32)
            collection.put(ids, vectors, texts, [{"number": start + at} for at in range(BATCH)])
        while True:
            done = pool.maintain()
            if not (done.blocks_built or done.segments_merged or done.segments_freed or done.postponed):
                return


class Writer:
    """A thread of this process that puts rows at a rate, through its own handle, until it is left."""

    def __init__(self, path: str, rows_per_s: int) -> None:
        self._path, self._rows_per_s = path, rows_per_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        vectors = np.random.default_rng(2).standard_normal((self._rows_per_s // 10, DIMENSION)).astype(np.float32)
        with Pool.open(self._path, name="writer", maintenance=False) as pool:
            collection, number = pool.collection("documents"), 0
            while not self._end.wait(0.1):
                collection.put([f"w{number + at}" for at in range(len(vectors))], vectors)
                number += len(vectors)


def cpu_s(pid: int) -> float:
    """Processor seconds of a process so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def share(pid: int, seconds: float) -> float:
    """The share of one core that a process takes over these seconds."""
    before, began = cpu_s(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_s(pid) - before) / (time.monotonic() - began)


class Watcher:
    """Reads `/v1/pool/watch` as the page does and counts the looks, until it is left."""

    def __init__(self, serving: Serving, key: str) -> None:
        self._client = serving.client(key)
        self.looks, self.bytes = 0, 0
        self._open = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        self._open.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def _read(self) -> None:
        try:
            with self._client.stream("GET", "/v1/pool/watch") as response:
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        orjson.loads(line[6:])
                        self.looks, self.bytes = self.looks + 1, self.bytes + len(line)
                        self._open.set()
        except Exception:  # noqa: BLE001 (closed while it was read)
            return


def first_paints(browser: Browser, serving: Serving) -> list[float]:
    """Milliseconds from asking for the page to its first contentful paint, in new windows."""
    found = []
    for _ in range(VISITS):
        person = Person(browser, serving)
        person.visit()
        person.page.get_by_label("Your key").wait_for()
        entry = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        person.page.wait_for_function(entry)
        found.append(float(person.page.evaluate(entry)))
        person.close()
    return found


def bytes_of_page(browser: Browser, serving: Serving, key: str) -> tuple[int, int]:
    """(bytes as they are, bytes as they travel) of all that one visit to every view asks for, the API's answers left out."""
    person = Person(browser, serving)
    asked: set[str] = set()
    person.page.on("request", lambda request: asked.add(request.url.partition("#")[0]))
    person.sign_in(key)
    for view in ("#/conversations", "#/group", "#/pool", "#/ask"):
        person.page.evaluate("view => { location.hash = view; }", view)
        person.page.locator("main h1").wait_for()
    person.close()
    whole = packed = 0
    with serving.client(None) as client:
        for url in sorted(one for one in asked if "/v1/" not in one):
            with client.stream("GET", url, headers={"Accept-Encoding": "gzip"}) as response:
                packed += len(b"".join(response.iter_raw()))
            whole += len(client.get(url).content)
    return whole, packed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each share of a core")
    options = parser.parse_args()
    title = f"The page, with {options.rows:,} rows in the pool"
    caption = f"load of the machine before: {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores"
    table = Table("what", "measured", "demanded", "", title=title, caption=caption)
    folder = Path(tempfile.mkdtemp(prefix="sharedrag-bench-page-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        path = str(folder / "bench.pool")
        fill(path, options.rows)
        with Serving(path, 1, label="bench", maintenance=0) as serving:
            crowd = Crowd(serving)
            if CHROMIUM is None:
                table.add_row("first paint, bytes", "no chromium here", "", "")
            else:
                with chromium() as browser:
                    _measure_page(table, browser, serving, crowd.key("Bob"))
            _measure_map(table, path, serving, crowd.key("Bob"), options.seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    Console(width=None if Console().is_terminal else 140).print(table)


def _measure_page(table: Table, browser: Browser, serving: Serving, key: str) -> None:
    paints = first_paints(browser, serving)
    told = f"{median(paints):.0f} ms (slowest {max(paints):.0f})"
    table.add_row(
        "first paint, median of new windows", told, f"< {PAINT_MAX_MS:.0f} ms", _mark(median(paints) < PAINT_MAX_MS)
    )
    whole, packed = bytes_of_page(browser, serving, key)
    told = f"{whole / 1000:.0f} kB ({packed / 1000:.0f} kB packed)"
    table.add_row("all files, every view", told, f"< {BYTES_MAX / 1000:.0f} kB", _mark(whole < BYTES_MAX))


def _measure_map(table: Table, path: str, serving: Serving, key: str, seconds: float) -> None:
    (pid,) = serving.worker_pids()
    with Pool.open(path, name="floor", maintenance=False) as pool:
        watch = PoolWatch(pool)
        watch.sample()
        began = time.process_time()
        for _ in range(50):
            watch.sample()
        look_ms = (time.process_time() - began) * 1000 / 50
    table.add_row("one look (PoolWatch.sample), alone", f"{look_ms:.2f} ms", "", "")
    for what, rows_per_s in (("nobody writes", 0), ("1,000 rows/s are written elsewhere", 1000)):
        if rows_per_s:
            with Writer(path, rows_per_s):
                _measure_share(table, serving, pid, key, seconds, what)
        else:
            _measure_share(table, serving, pid, key, seconds, what)


def _measure_share(table: Table, serving: Serving, pid: int, key: str, seconds: float, what: str) -> None:
    alone = share(pid, seconds)
    with Watcher(serving, key) as watcher:
        time.sleep(1.0)
        looks, size = watcher.looks, watcher.bytes
        watched = share(pid, seconds)
        looks, size = watcher.looks - looks, watcher.bytes - size
    cost = watched - alone
    told = f"{cost:.2%} of a core ({watched:.2%} less {alone:.2%})"
    table.add_row(f"the map, {what}", told, f"< {SHARE_MAX:.0%}", _mark(cost < SHARE_MAX))
    told = f"{looks / seconds:.2f} /s, {size / max(1, looks) / 1000:.1f} kB each"
    demanded = f">= {LOOKS_MIN:.0f} /s" if "nobody" not in what else "(what changes is told)"
    table.add_row(f"looks, {what}", told, demanded, _mark(looks / seconds >= LOOKS_MIN) if "nobody" not in what else "")
    time.sleep(1.0)  # its stream ends


def _mark(reached: bool) -> str:
    return "reached" if reached else "not reached"


if __name__ == "__main__":
    main()
