"""Run the bench of search: `python -m tests.bench_search [--rows N]... [--data DIR] [--json FILE] [--quick]`.

A figure below its demand is no failure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.bench.__main__ import OTHERS, Others, machine, number
from tests.bench.children import ask
from tests.bench.figures import Figure, Limit, percentile
from tests.bench_search import asked, llama, shrink, stage
from tests.peers import corpus

_REPOSITORY = Path(__file__).resolve().parent.parent.parent
_DATA = _REPOSITORY.parent / "shared" / "data"
_NEEDED = ("minilm_120k_i8.npy", "minilm_120k_texts.parquet", "minilm_queries_1k_f16.npy")
_ROWS = (100_000, 1_000_000)
_RATIO_DEMANDED = {100_000: 1.5, 1_000_000: 1.4}
_FILTERED_ROWS = 100_000  # the size that the demands on filters and LlamaIndex are for
_SHRUNK_ROWS = 1_000_000
_PIPED_WIDTH = 150
_SECONDS_BESIDE_WRITERS = 15.0


class Bench:
    """One run: a folder on shared memory, gone afterwards."""

    def __init__(self, data: Path, folder: Path, rounds: int, seconds: float, tell: stage.Tell) -> None:
        self._data, self._folder, self._rounds, self._seconds = data, folder, rounds, seconds
        self.tell = tell
        self.figures: list[Figure] = []

    def _add(self, name: str, what: str, unit: str, rounds: list[float], **more: Any) -> None:
        self.figures.append(Figure(name, what, unit, rounds, more.pop("higher", False), **more))

    def run(self, rows: int) -> None:
        """All figures at so many rows."""
        self.tell(f"making {rows:,} rows from the real ones")
        folder = self._folder / f"corpus-{rows}"
        corpus.prepare(self._data, folder, rows)
        path = self._folder / f"{rows}.pool"
        self._stage(lambda: self._loaded(stage.load(path, corpus.Corpus(folder), self.tell)))
        self._stage(lambda: self._searched(rows, path, folder))
        if rows == _FILTERED_ROWS or rows < min(_ROWS):
            self._stage(lambda: self._through_llama_index(rows, folder))
        self._stage(lambda: self._beside_writers(rows, path, folder))
        if rows == _SHRUNK_ROWS or rows < min(_ROWS):
            self._stage(lambda: self._shrunk(rows, shrink.delete_most(path, rows, self.tell)))
        path.unlink()
        shutil.rmtree(folder)

    def _stage(self, measure: Callable[[], None]) -> None:
        """Measure, and note what other processes took of the cores meanwhile."""
        others, before = Others(), len(self.figures)
        measure()
        for one in self.figures[before:]:
            one.notes[OTHERS] = round(others.share(), 2)

    def _through_llama_index(self, rows: int, folder: Path) -> None:
        self.tell(f"{rows:,} nodes through LlamaIndex")
        nodes = self._folder / "nodes.pool"
        medians = ask(llama.query, nodes, folder, self._rounds)
        what = f"{rows:,} rows: SharedVectorStore.query through LlamaIndex, k = 10, p50"
        self._add(f"llama {rows}", what, "us", medians, demanded=1000)
        nodes.unlink()

    def _loaded(self, loaded: stage.Loaded) -> None:
        rows = loaded.rows
        notes = {"put s": round(loaded.put_s, 2), "maintenance s": round(loaded.settle_s, 2)}
        self._add(
            f"load {rows}",
            f"{rows:,} rows with texts put in batches of {stage.BATCH:,}, merged, columns, terms and index built",
            "rows/s",
            [loaded.rows_per_s],
            higher=True,
            notes=notes,
        )
        for name, what, size, demanded in (
            ("index", "index for vectors", loaded.index_bytes, 100),
            ("terms", "postings for words", loaded.terms_bytes, None),
            ("columns", "typed metadata columns", loaded.columns_bytes, None),
            ("memory", "all memory of the pool", loaded.memory_bytes, None),
        ):
            self._add(f"{name} bytes {rows}", f"{rows:,} rows: {what}", "B/row", [size / rows], demanded=demanded)

    def _searched(self, rows: int, path: Path, folder: Path) -> None:
        self.tell(f"{rows:,} rows: the pool and a private index by turns")
        found = ask(asked.alone, path, folder, self._rounds)
        turns, settings = found["private"], found["settings"]
        what = "private index of the same kind, ids and scores only, p50 us"
        limit = Limit(what, round(percentile(turns.second_us, 0.5), 1))
        notes = {
            "recall private": found["recall private"],
            "p99 us": [turns.first_p99_us, turns.second_p99_us],
            "settings": settings,
        }
        self._add(f"search {rows}", f"{rows:,} rows: Collection.search, k = 10, p50", "us", turns.first_us, limit=limit)
        self._add(
            f"ratio {rows}",
            f"{rows:,} rows: the same, as a multiple of the private index's",
            "x",
            turns.ratios,
            demanded=_RATIO_DEMANDED.get(rows, 1.5),
            notes=notes,
        )
        self._add(
            f"recall {rows}",
            f"{rows:,} rows: recall of the ten best, 1,000 held-out real questions",
            "",
            [found["recall"]],
            higher=True,
            demanded=0.95,
            limit=Limit("of the private index", round(found["recall private"], 3)),
        )
        turns = found["filter"]
        self._add(f"filter {rows}", f"{rows:,} rows: with a filter that 1 % match, p50", "us", turns.first_us)
        demanded = 2 if rows == _FILTERED_ROWS else None
        what = f"{rows:,} rows: the same, as a multiple of the unfiltered"
        self._add(f"filter ratio {rows}", what, "x", turns.ratios, demanded=demanded)
        what = f"{rows:,} rows: find the newest 20 since a time, newest first, p50"
        self._add(f"newest {rows}", what, "us", found["newest"])

    def _beside_writers(self, rows: int, path: Path, folder: Path) -> None:
        self.tell(f"{rows:,} rows: the same while two processes write 1,000 records/s each")
        turns, rates = asked.beside_writers(path, folder, self._seconds)
        self._add(
            f"beside writers {rows}",
            f"{rows:,} rows: Collection.search while two processes write 1,000 records/s each, p50",
            "us",
            turns.first_us,
            limit=Limit("private index meanwhile, p50 us", round(percentile(turns.second_us, 0.5), 1)),
            notes={"writes per s": [round(one) for one in rates], "p99 us": [turns.first_p99_us, turns.second_p99_us]},
        )
        what = f"{rows:,} rows: the same, as a multiple of the private index's"
        self._add(f"ratio beside writers {rows}", what, "x", turns.ratios, demanded=2)

    def _shrunk(self, rows: int, found: dict[str, float]) -> None:
        self._add(
            f"shrunk {rows}",
            f"{rows:,} rows: memory left after 90 % were deleted, of what it was",
            "%",
            [100 * found["after"] / found["before"]],
            limit=Limit("of the rows are left, %", round(100 * found["left"] / rows, 1)),
            notes=found,
        )


def table(figures: list[Figure], about: dict[str, Any]) -> Table:
    """The figures, each beside its demand and what it is compared with."""
    caption = (
        f"{about['cores']} cores ({about['processor']}), Python {about['python']}, Linux {about['kernel']}, "
        f"load before {about['load_before']}; medians of the rounds; one FAISS thread in each process that asks; "
        f"others: what other processes took of the cores meanwhile"
    )
    shown = Table(title="sharedrag: search over real sentence vectors, 384 dimensions", caption=caption, expand=False)
    for name in ("what", "measured", "demanded", "", "others", "to compare with"):
        shown.add_column(name, justify="right" if name in ("measured", "demanded") else "left")
    for one in figures:
        bound = "at least" if one.higher_is_better else "at most"
        demanded = "" if one.demanded is None else f"{bound} {number(one.demanded)}"
        mark = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[one.met]
        limit = "" if one.limit is None else f"{number(one.limit.value)}: {one.limit.what}"
        value = f"{one.value:.3f}" if not one.unit else f"{number(one.value)} {one.unit}"
        shown.add_row(one.what, value, demanded, mark, f"{one.notes[OTHERS]:.0%}", limit)
    return shown


def _as_json(figures: list[Figure], about: dict[str, Any], begun: float) -> str:
    found = {
        "machine": about,
        "seconds": round(time.time() - begun, 1),
        "figures": [one.as_json() for one in figures],
    }
    return json.dumps(found, indent=2) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench_search", description=__doc__)
    parser.add_argument("--rows", type=int, action="append", metavar="N", help="may be repeated; default: 100000, 1000000")
    parser.add_argument("--data", type=Path, default=_DATA, metavar="DIR", help="the real vectors and texts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, rounds and notes there")
    parser.add_argument("--quick", action="store_true", help="one round, two seconds beside writers: to see that it runs")
    chosen = parser.parse_args(arguments)
    missing = [name for name in _NEEDED if not (chosen.data / name).exists()]
    if missing:
        parser.error(f"{', '.join(missing)}: not in {chosen.data}. Say where the real vectors are: --data DIR")
    about, begun = machine(), time.time()
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    shared_memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="sharedrag-bench-", dir=shared_memory if shared_memory.is_dir() else None))
    rounds, seconds = (1, 2.0) if chosen.quick else (5, _SECONDS_BESIDE_WRITERS)
    bench = Bench(chosen.data, folder, rounds, seconds, print)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        # Drawn rarely: whoever draws takes a core from what is measured.
        with Progress(*columns, console=console, refresh_per_second=1, transient=True) as progress:
            task = progress.add_task("starting")
            bench.tell = lambda text: progress.update(task, description=text)
            for rows in chosen.rows or _ROWS:
                bench.run(rows)
                if chosen.json:  # who interrupts a long run keeps what it had
                    chosen.json.write_text(_as_json(bench.figures, about, begun))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if bench.figures:
            console.print(table(bench.figures, about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
