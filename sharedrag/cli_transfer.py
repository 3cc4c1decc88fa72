"""`sharedrag import` and `sharedrag export`: chats and records in, records out, with progress."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from sharedrag import Pool, cli_view
from sharedrag.cli_base import (
    HISTORY,
    AsJson,
    EmbedderOption,
    NodeOption,
    PoolPath,
    console,
    group_of,
    has_history,
    open_history,
    open_pool,
    show,
)
from sharedrag.errors import CollectionNotFound
from sharedrag.filters import And, Where
from sharedrag.history import Group, History, NotFound
from sharedrag.transfer import Imported, import_chats, restore
from sharedrag.transfer import export as write_export

#: What is of this pool alone: rights, and notes that are forgotten soon.
NOT_EXPORTED = ("key", "lease", "once", "gone", "tidy")
GroupOption = Annotated[str | None, typer.Option("--group", "-g", help="The group, by name or id.")]


def import_(
    path: PoolPath,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="ChatGPT's export (conversations.json, its zip or folder), Slack's (zip or folder), JSON lines, Parquet, "
            "Arrow, or a file that `sharedrag export` wrote.",
            exists=True,
        ),
    ],
    group: GroupOption = None,
    create: Annotated[bool, typer.Option("--create", help="Make the group if there is none of this name.")] = False,
    user: Annotated[
        str | None, typer.Option("--user", help="Who said what the file has no author for. Default: your login name.")
    ] = None,
    user_map: Annotated[
        list[str] | None,
        typer.Option("--user-map", help="NAME=USER, may be repeated; or a JSON file {name: user}. Others keep their names."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--source", help="What makes the file's ids unique. Default: the kind of export, or the file's name."),
    ] = None,
    embedder: EmbedderOption = None,
    as_json: AsJson = False,
    node: NodeOption = 0,
) -> None:
    """Bring chats into a group's history; or, without --group, the records of an export back as they were.

    Authors become members, a message that answers another makes an exchange with it, times are kept. Twice is once: what is
    there already is left alone, so an import that was stopped is taken up by the same command.

    Rows of JSON lines, Parquet and Arrow are understood by their fields: text (content, message, body), id, conversation
    (chat, room, channel, thread, log), author (user, name, sender), role (speaker), reply_to (parent_id), time (created_at,
    timestamp), model; or question and answer; or messages/turns of {role, content}; or texts and speakers.

    ```
    sharedrag import /dev/shm/team.pool conversations.json --group hawaii --create --user ann@example.org
    sharedrag import /dev/shm/team.pool slack-export.zip --group hawaii --user-map "Ann Lee=ann@example.org"
    sharedrag import /dev/shm/team.pool backup.parquet
    ```
    """
    users = _user_map(user_map or [])
    with open_pool(path, "import", node=node) as pool:
        if group is None:
            for file in files:
                _restore(pool, file, as_json)
            return
        history = open_history(pool, embedder)
        wanted = _group(history, group, create)
        for file in files:
            _import(history, wanted, file, user or getpass.getuser(), users, source, as_json)


def export(
    path: PoolPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write: .parquet, or .arrow for Arrow IPC.")],
    group: GroupOption = None,
    collection: Annotated[
        list[str] | None, typer.Option("--collection", help="Only this collection; may be repeated. Default: all.")
    ] = None,
    vectors: Annotated[bool, typer.Option("--vectors/--no-vectors", help="Whether records bring their vectors.")] = True,
    as_json: AsJson = False,
    node: NodeOption = 0,
) -> None:
    """Write a group's history, some collections or the whole pool to one file that pyarrow, DuckDB and pandas open.

    Columns: collection, id, created, text, metadata (JSON), vector. What a group exports has neither keys nor leases. With
    vectors, `sharedrag import` brings it back as it was; without, its messages can be imported into a group.

    ```
    sharedrag export /dev/shm/team.pool backup.parquet
    sharedrag export /dev/shm/team.pool hawaii.arrow --group hawaii --no-vectors
    duckdb -c "select metadata->>'user' as who, count(*) from 'backup.parquet' group by who"
    ```
    """
    if group is not None and collection:
        raise typer.BadParameter("--group is of the history: say it without --collection")
    with open_pool(path, "export", node=node) as pool, _bar("exporting", "records") as progress:
        chosen, wanted, of = collection, None, None
        if group is not None:
            if not has_history(pool):
                raise CollectionNotFound("there is no history", operation="export", path=pool.path)
            history = open_history(pool, None)
            of = group_of(history, group).id
            chosen = [name for name in (HISTORY, f"{HISTORY}.exchanges") if name in pool.collections()]
            wanted = And(Where("group", "==", of), Where("kind", "nin", list(NOT_EXPORTED)))
        try:
            done = write_export(pool, out, chosen, wanted, vectors=vectors, group=of, progress=progress)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="OUT") from None
    if as_json:
        show(done.model_dump_json(indent=2))
    else:
        rate = f"{done.rows / max(done.seconds, 1e-9):,.0f}/s"
        show(f"{done.rows:,} records in {cli_view.size(done.size)}, {done.seconds:.1f} s ({rate}): {done.path}")


def _group(history: History, wanted: str, create: bool) -> Group:
    try:
        return group_of(history, wanted, "; or make it: --create")
    except NotFound:
        if not create or wanted.startswith("grp_"):
            raise
    made = history.groups.create(wanted)
    console(stderr=True).print(f"Made the group {made.name!r}, {made.id}", highlight=False, markup=False)
    return made


def _user_map(given: list[str]) -> dict[str, str]:
    users: dict[str, str] = {}
    for one in given:
        name, separator, user = one.partition("=")
        if separator and name and user:
            users[name] = user
            continue
        try:
            read = orjson.loads(Path(one).read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise typer.BadParameter(f"{one!r} is neither NAME=USER nor a JSON file: {error}") from None
        if not isinstance(read, dict) or not all(isinstance(value, str) for value in read.values()):
            raise typer.BadParameter(f"{one}: not an object of names and users", param_hint="--user-map")
        users |= read
    return users


def _import(
    history: History, group: Group, file: Path, user: str, users: dict[str, str], source: str | None, as_json: bool
) -> None:
    state = Imported("", 0)
    with _bar(file.name, "messages") as bar:

        def progress(now: Imported) -> None:
            nonlocal state
            state = now
            embedder = f"embedder {now.embedder_rate:,.0f} texts/s, {now.embedder_share:.0%} of the time"
            bar(now.done, now.total, now.rate, embedder)

        try:
            state = import_chats(history, group.id, file, user=user, users=users, source=source, progress=progress)
        except KeyboardInterrupt:
            what = f"Stopped after {state.done:,} messages; the same command goes on from there."
            console(stderr=True).print(what, highlight=False)
            raise
    show(orjson.dumps(_as_json(state), option=orjson.OPT_INDENT_2).decode() if as_json else _said(state, file, group))


def _as_json(state: Imported) -> dict[str, object]:
    figures = {name: round(getattr(state, name), 3) for name in ("seconds", "rate", "embedding_s", "embedder_rate")}
    counts = {
        name: getattr(state, name) for name in ("source", "total", "messages", "exchanges", "already_there", "embedded")
    }
    return {**counts, **figures, "embedder_share": round(state.embedder_share, 3), "skipped": dict(state.skipped)}


def _said(state: Imported, file: Path, group: Group) -> str:
    lines = [f"{file.name} into {group.name!r}: {state.messages:,} messages, {state.exchanges:,} exchanges are new"]
    if state.already_there:
        lines.append(f"{state.already_there:,} messages were there already")
    if state.skipped:
        lines.append("left out: " + ", ".join(f"{count:,} {reason}" for reason, count in state.skipped.most_common()))
    lines.append(
        f"{state.seconds:.1f} s, {state.rate:,.0f} messages/s; the embedder took {state.embedder_share:.0%} of it, "
        f"{state.embedded:,} texts at {state.embedder_rate:,.0f}/s"
    )
    return "\n  ".join(str(cli_view.plain(line)) for line in lines)


def _restore(pool: Pool, file: Path, as_json: bool) -> None:
    with _bar(file.name, "records") as bar:
        done = restore(pool, file, bar)
    if as_json:
        show(done.model_dump_json(indent=2))
        return
    put = ", ".join(f"{count:,} into {name!r}" for name, count in done.put.items())
    show(f"{file.name}: {put or 'nothing'}; {done.already_there:,} were there already; {done.seconds:.1f} s")


class _Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        speed = task.fields["rate"] or task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {task.fields['unit']}/s", style="progress.data.speed")


class _Bar(Progress):
    """One line that fits 80 columns, and one below it for what else there is to say."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield from (Text(f"  {task.fields['more']}", style="dim") for task in self.tasks if task.fields["more"])


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Callable[..., None]]:
    """A bar on standard error, if that is a terminal; gives what brings it up to date (`done`, `total`, `rate`, `more`)."""
    columns = (
        TextColumn("{task.description}", table_column=Column(max_width=20, overflow="ellipsis", no_wrap=True)),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:,}"),
        _Rate(),
        TimeRemainingColumn(compact=True),
    )
    with _Bar(*columns, console=console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(escape(what), total=None, unit=unit, rate=None, more="")

        def update(done: int, total: int, rate: float | None = None, more: str = "") -> None:
            bar.update(task, completed=done, total=total, rate=rate, more=more)

        yield update
