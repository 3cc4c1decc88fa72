"""`python -m demos.hawaii`: four processes share one memory of a travel group, one is killed, nothing is lost.

A pool in shared memory with four nodes, each played by a process of its own that attaches as its node. Each embeds and
writes the answers of its people, and asks what its people want to know; what one writes, the others find in their next
query. Offline; about two minutes, `--quick` under half a minute. Exit code 0 only if nothing was lost and nothing failed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from demos.group import NODES, DemoFailed, Group, Plan
from demos.place import claimed, default_pool_path
from demos.plot import plot
from demos.questions import Question, labelled, own_questions
from demos.report import report
from demos.view import view_for
from sharedrag.chats import Exchange, UnreadableData, exchanges, load, names
from sharedrag.cli_view import error_panel, plain, size
from sharedrag.errors import SharedRagError

DATA = Path(__file__).resolve().parent / "data"
CHAT = DATA / "hawaii_chat.jsonl"
LABELS = DATA / "hawaii_eval.jsonl"
PLOT = Path("out") / "demo.png"
WIDTH_WHEN_PIPED = 160
TITLE = "A Hawaii travel group's year in one memory of four processes"
# Read when NumPy, FAISS and the model are loaded, so for the nodes, which inherit them: four processes are the parallelism.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "SHAREDRAG_EMBED_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
EXAMPLE = "Can I swim at Hanauma Bay on a Monday?"

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


@app.command()
def main(
    quick: Annotated[bool, typer.Option("--quick", help="For CI: under half a minute; no pool is kept.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Another chat: JSON lines, Parquet, or an export of ChatGPT or Slack (folder or zip)."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Labelled questions for --data, as demos/data/hawaii_eval.jsonl has them.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many exchanges of --data are played.")] = 10_000,
    pool: Annotated[Path | None, typer.Option(help="Where the pool is made; one that a demo made is replaced.")] = None,
    keep: Annotated[
        bool | None, typer.Option("--keep/--no-keep", help="Keep the pool, to ask it afterwards. Default: unless --quick.")
    ] = None,
    picture: Annotated[Path, typer.Option("--plot", help="Where the plot goes, as PNG.")] = PLOT,
    embedder: Annotated[str, typer.Option(help="light, or sentence-transformers (the same model by torch).")] = "light",
) -> None:
    """Watch four processes share one memory of a travel group; one is killed midway, and nothing is lost."""
    os.environ |= ENVIRONMENT
    for number in (signal.SIGTERM, signal.SIGHUP):  # unwind as Ctrl-C does: no process and no pool is left behind
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH_WHEN_PIPED
    try:
        plan, title = _plan(console, quick, data, labels, limit, embedder)
        kept = not quick if keep is None else keep
        ok = _play(console, plan, title, pool or default_pool_path(kept), kept, picture)
    except (SharedRagError, DemoFailed, OSError) as error:
        console.print(error_panel(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("Stopped; the processes and the pool are gone.")
        raise typer.Exit(130) from None
    raise typer.Exit(0 if ok else 1)


def _plan(
    console: Console, quick: bool, data: Path | None, labels: Path | None, limit: int, embedder: str
) -> tuple[Plan, str]:
    loaded = load(data or CHAT)
    found = exchanges(loaded.messages)
    if not found:
        what = f"{len(loaded.messages):,} messages, but none answers another"
        raise UnreadableData(data or CHAT, what, "Give reply_to, roles, or questions with their answers")
    if data is not None:
        skipped = "".join(f"; {count:,} left out: {reason}" for reason, count in loaded.skipped.items())
        more = f"; the first {limit:,} are played (--limit)" if len(found) > limit else ""
        said = f"{data}: {len(loaded.messages):,} messages, {len(found):,} exchanges{skipped}{more}"
        console.print(plain(said), highlight=False)
    played = found[:limit]
    title = TITLE if data is None else f"{data.name} in one memory of four processes"
    return (
        Plan(
            exchanges=played,
            questions=_questions(data, labels, played),
            people=names(played),
            embedder=embedder,
            replay_s=7.0 if quick else 40.0,
            down_s=0.5 if quick else 3.0,
            probes=100 if quick else 500,
            ballast=20_000 if quick else 100_000,
        ),
        title,
    )


def _questions(data: Path | None, labels: Path | None, played: list[Exchange]) -> list[Question]:
    if labels is not None or data is None:
        return labelled(labels or LABELS)
    return own_questions(played)


def _play(console: Console, plan: Plan, title: str, path: Path, keep: bool, picture: Path) -> bool:
    started = time.monotonic()
    with claimed(path, NODES, keep) as pool:
        group = Group(plan, pool, title)
        try:
            with view_for(console, group.outcome) as view:
                group.play(view.show)
        finally:
            group.end()
        group.outcome.seconds = time.monotonic() - started
        console.print(report(group.outcome))
        plot(group.outcome, picture)
    console.print(f"Plot: {picture}. All of it took {group.outcome.seconds:.0f} s.", highlight=False, markup=False)
    if keep:
        _say_how_to_ask(console, group.outcome.pool_path, EXAMPLE if title == TITLE else plan.exchanges[0].question)
    return group.outcome.ok


def _say_how_to_ask(console: Console, pool_path: str, question: str) -> None:
    beside = Path(sys.executable).with_name("sharedrag")
    inside = beside.is_relative_to(Path.cwd())
    known = shutil.which("sharedrag") or not beside.exists()
    command = "sharedrag" if known else str(beside.relative_to(Path.cwd()) if inside else beside)
    quoted = shlex.quote(" ".join(question.split()))
    place = shlex.quote(pool_path)
    held = size(os.stat(pool_path).st_blocks * 512)
    for line in (
        f"The pool is still there ({held}), with no process at it. Ask it, from any terminal:",
        f"  {command} ask {place} {quoted}",
        f"Look into it with `{command} info {place}`; give its memory back with `rm {place}`.",
    ):
        console.print(plain(line), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app(prog_name="python -m demos.hawaii")
