"""`make eval`: every way of answering on every labelled data set, as tables; with --json and --markdown as files, too."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sharedrag import Pool
from sharedrag.embed import Embedder, Vectors, load_embedder
from sharedrag.history import Weights
from tests.eval import methods
from tests.eval.data import SHARED, Case, cases
from tests.eval.methods import Found, Place
from tests.eval.scores import Score, by_kind, score

Row = tuple[str, Score]
COLUMNS = ("way of answering", "hit@1", "hit@5", "MRR", "false answers", "silent")
FLOORS = (0.0, 0.28, 0.32, 0.34, 0.36, 0.40, 0.48)
WORDS = (0.0, 0.1, 0.3, 0.5)
FRESH_DAYS = (365.0, 1460.0)
COSINES = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6)


def main(
    json: Annotated[Path | None, typer.Option(help="Write all scores here, as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here, as Markdown.")] = None,
    only: Annotated[str | None, typer.Option(help="One data set: Hawaii or Hotels.")] = None,
) -> None:
    """Labelled questions, real embeddings; settings are chosen on one half of them and judged on the other."""
    console = Console()
    embedder = load_embedder("light")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results: dict[str, dict[str, list[Row]]] = {}
    for name, case in cases():
        if only not in (None, name):
            continue
        if case is None:
            console.print(f"{name}: skipped, its data is not at {SHARED}")
            continue
        with Progress(*columns, console=console, transient=True) as progress, _new_pool() as pool:
            results[name] = evaluate(pool, embedder, case, progress)
        for title, rows in results[name].items():
            console.print(_table(f"{name}: {title}", rows))
    if json is not None:
        plain = {
            name: {title: [(way, one.model_dump()) for way, one in rows] for title, rows in tables.items()}
            for name, tables in results.items()
        }
        json.write_bytes(orjson.dumps(plain, option=orjson.OPT_INDENT_2))
    if markdown is not None:
        markdown.write_text("\n".join(_markdown(name, tables) for name, tables in results.items()))


@contextmanager
def _new_pool() -> Iterator[Pool]:
    """A pool that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="sharedrag-eval-", dir="/dev/shm") as folder:
        path = Path(folder) / "eval.pool"
        with Pool.open(path, create=True, capacity="512 MiB", maintenance=False) as pool:
            yield pool


def evaluate(pool: Pool, embedder: Embedder, case: Case, progress: Progress) -> dict[str, list[Row]]:
    """All tables of one data set."""
    said = sum(map(len, case.conversations)) + 1
    bar = progress.add_task(f"{case.name}: writing", total=said)
    place = methods.fill(pool, embedder, case, lambda count: progress.advance(bar, count))
    vectors = methods.vectors_of(place, embedder, Weights())
    grid = list(itertools.product(FLOORS, WORDS, FRESH_DAYS))
    bar = progress.add_task(f"{case.name}: settings", total=len(grid))
    tried: list[tuple[str, Found]] = []
    for floor, words, days in grid:
        weights = Weights(floor=floor, words=words, fresh_half_life_days=days)
        tried.append((f"floor {floor}, words {words}, {days:.0f} days", methods.ask(place, vectors, weights, embedder)))
        progress.advance(bar)
    return _tables(place, embedder, vectors, tried)


def _tables(
    place: Place, embedder: Embedder, vectors: list[Vectors], tried: list[tuple[str, Found]]
) -> dict[str, list[Row]]:
    questions = place.case.questions
    rows: list[Row] = []
    for what, by in itertools.product(("question", "question and answer"), ("cosine", "BM25", "fused")):
        if by == "cosine" or what == "question and answer":
            over = f"{by} of {what}" if by == "cosine" else "BM25" if by == "BM25" else "both fused by rank (RRF)"
            rows.append((f"plain: {over}", score(questions, methods.plain(place, what, by))))
    floored = [(f"{floor}", methods.cosine_above(place, floor)) for floor in COSINES]
    found, chosen = methods.cross_validated(questions, floored)
    rows.append((f"cosine, floor cross-validated ({' and '.join(chosen)})", found))
    ours = methods.ask(place, vectors, Weights(), embedder)
    open_ = Weights(floor=0.0)
    rows.append(("ask without a floor", score(questions, methods.ask(place, vectors, open_, embedder))))
    rows.append(("ask, as it is set", score(questions, ours)))
    found, chosen = methods.cross_validated(questions, tried)
    rows.append((f"ask, cross-validated ({' | '.join(chosen)})", found))
    tables = {place.case.what: rows, "ask by kind of question": list(by_kind(questions, ours).items())}
    if place.case.subjects:
        asked, changed = methods.changed_subject(place, embedder, Weights())
        same = {one.id: ours[one.id] for one in asked}
        tables["asked in a talk about something else"] = [
            ("in no conversation", score(asked, same)),
            ("after something else", score(asked, changed)),
        ]
    tables["the best settings on all questions (an upper bound, not a figure)"] = [
        (name, one)
        for name, one in sorted(((name, score(questions, found)) for name, found in tried), key=lambda row: -row[1].worth)[
            :8
        ]
    ]
    return tables


def _cells(one: Score) -> list[str]:
    return [f"{value:.3f}" for value in (one.hit1, one.hit5, one.mrr, one.false, one.silent)]


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=f"{title} ({rows[0][1].questions} questions)", title_justify="left")
    for at, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if at else "left")
    for name, one in rows:
        table.add_row(name, *_cells(one))
    return table


def _markdown(name: str, tables: dict[str, list[Row]]) -> str:
    lines = [f"## {name}"]
    for title, rows in tables.items():
        lines += ["", f"{title}", "", f"| {' | '.join(COLUMNS)} |", "| --- |" + " ---: |" * (len(COLUMNS) - 1)]
        lines += [f"| {way} | {' | '.join(_cells(one))} |" for way, one in rows]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    typer.run(main)
