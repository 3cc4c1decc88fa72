"""What the commands share: their common arguments, the console they write to, the pool they open, the group they mean."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from sharedrag import Pool
from sharedrag.embed import MINILM, Embedder, load_embedder
from sharedrag.errors import SharedRagError
from sharedrag.history import Group, History, NotFound

WIDTH_WHEN_PIPED = 160  # columns: a table in a file or a pipe has no window to fit
HISTORY = "history"

PoolPath = Annotated[str, typer.Argument(metavar="POOL", help="Path of the pool, such as /dev/shm/team.pool.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")]
NodeOption = Annotated[int, typer.Option("--node", min=0, help="The node (lock domain) to attach as.")]
EmbedderOption = Annotated[
    str | None,
    typer.Option("--embedder", help="light or sentence-transformers. Default: what the collection asks for."),
]


def console(stderr: bool = False) -> Console:
    """The terminal, or a wide page where there is none."""
    made = Console(stderr=stderr)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = WIDTH_WHEN_PIPED
    return made


def show(what: RenderableType) -> None:
    """Print a text as it is, anything else as rich draws it."""
    if isinstance(what, str):
        typer.echo(what)
    else:
        console().print(what)


def open_pool(path: str, command: str, **options: Any) -> Pool:
    """The pool, without a maintenance thread. A size or node that cannot be is a wrong command line (exit code 2)."""
    try:
        return Pool.open(path, name=f"sharedrag {command}", maintenance=False, **options)
    except SharedRagError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def has_history(pool: Pool) -> bool:
    """Whether anybody made a group in this pool."""
    return f"{HISTORY}.exchanges" in pool.collections() or bool(_group_records(pool))


def _group_records(pool: Pool) -> list[Any]:
    return pool.collection(HISTORY).find({"kind": "group"}, limit=1) if HISTORY in pool.collections() else []


def open_history(pool: Pool, embedder: str | None) -> History:
    """The pool's history, with the embedder that its exchanges ask for, or that the command line does."""
    exchanges = f"{HISTORY}.exchanges"
    asked = pool.collection(exchanges).embedding_model if exchanges in pool.collections() else None
    model: Embedder = load_embedder(embedder or asked or MINILM)
    return History(pool, HISTORY, model)


def group_of(history: History, wanted: str | None, hint: str = "") -> Group:
    """The group of this id or name; without one, the only group. Raises `NotFound` with the groups that there are."""
    groups = history.groups.list()
    found = [one for one in groups if wanted in (None, one.id)] or [one for one in groups if one.name == wanted]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{one.name!r} ({one.id})" for one in groups) or "none yet"
    if wanted is None:
        what = "the pool has several groups" if groups else "the pool has no group"
    else:
        what = f"several groups are called {wanted!r}" if found else f"no group {wanted!r}"
    raise NotFound(what, path=history.pool.path, hint=f"Say --group with a name or id; there is: {known}{hint}")
