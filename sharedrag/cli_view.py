"""What the `sharedrag` command shows: models of the pool and search hits in, rich tables out; nothing is read here.

Texts, labels and metadata come from other people's processes. They are shown as text, never as markup, and without
control characters: a chat message must not be able to drive the reader's terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sharedrag.errors import SharedRagError

if TYPE_CHECKING:
    from sharedrag import Hit
    from sharedrag.history import Answer
    from sharedrag.info import CollectionInfo, MaintenanceReport, NodeInfo, PoolInfo, SessionInfo, VerifyReport

# What the stores of frameworks and the demo call an exchange's parts; a record is shown with those it has.
KEYS_SHOWN = ("question", "author", "node")
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def plain(value: object) -> Text:
    """Anything as text on one or more lines, without markup and control characters."""
    characters = (char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in str(value))
    return Text("".join(characters), overflow="fold")


def size(count: int | None) -> str:
    """Bytes for people: 1536 -> '1.5 KiB'; a dash for what is not known."""
    if count is None:
        return "-"
    number = float(count)
    for unit in UNITS:
        if number < 1024 or unit == UNITS[-1]:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError("the last unit takes every number")


def age(since: datetime, now: datetime | None = None) -> str:
    """How long ago, in one unit: '40 s', '5 min', '3 h', '12 days', '4 months', '2 years'; 'now' for the future."""
    seconds = ((now or datetime.now(UTC)) - since) / timedelta(seconds=1)
    if seconds < 1:
        return "now"
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (86_400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    days = seconds / 86_400
    for count, name in ((days / 365, "year"), (days / 30.4, "month"), (days, "day")):
        if count >= 2 or name == "day":
            return f"{count:.0f} {name}{'' if round(count) == 1 else 's'}"
    raise AssertionError("days take every number")


def error_panel(error: Exception) -> Panel:
    """What failed, on which pool or file, and what to do now."""
    if isinstance(error, SharedRagError):
        lines = [plain(error.what)]
        if error.path:
            lines.append(Text.assemble(("Path: ", "dim"), plain(error.path)))
        if error.hint:
            lines.append(Text.assemble(("What to do: ", "bold"), plain(error.hint)))
        title = type(error).__name__ + (f" in {error.operation}" if error.operation else "")
    else:
        lines, title = [plain(error)], type(error).__name__
    return Panel(Group(*lines), title=plain(title), title_align="left", border_style="red")


def pool_view(info: PoolInfo) -> RenderableType:
    """Everything about a pool: space, nodes, collections, lanes, processes."""
    parts = [_nodes(info.nodes), _collections(info), _vectors(info), _lanes(info), processes_view(info.sessions)]
    return Group(_space(info), *(line for part in parts if part is not None for line in (part, "")))


def _space(info: PoolInfo) -> RenderableType:
    created = datetime.fromtimestamp(info.created_us / 1e6, UTC)
    used = Table.grid(padding=(0, 1))
    used.add_row(
        f"{size(info.allocated)} of {size(info.capacity)} used, {size(info.free)} free",
        ProgressBar(total=max(1, info.capacity), completed=info.allocated, width=40),
    )
    held = " for good (preallocated)" if info.preallocated else ""
    facts = (
        f"{size(info.reserved)} of memory or disk behind it{held}; format {info.format_version}; "
        f"made {created:%Y-%m-%d %H:%M} UTC"
    )
    return Panel(Group(used, Text(facts, style="dim")), title=plain(info.path), title_align="left")


def _table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    # Without frames: what a pool has to say fits 80 columns.
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _nodes(nodes: Sequence[NodeInfo]) -> RenderableType:
    table = _table(
        "Nodes",
        "node",
        "label",
        "generation",
        "used",
        "to be freed",
        "free",
        "maintained by",
        right=("node", "generation", "used", "to be freed", "free", "maintained by"),
    )
    for node in nodes:
        table.add_row(
            str(node.node),
            plain(node.label),
            str(node.generation),
            size(node.allocated),
            size(node.retired),
            size(node.free),
            _process(node.maintainer_pid),
        )
    return table


def _collections(info: PoolInfo) -> RenderableType:
    if not info.collections:
        return Text("No collections yet: pool.collection('history', dimension=384) makes one.", style="dim")
    numbers = ("rows", "dead", "open", "sealed", "space")
    table = _table("Collections", "name", *numbers, right=numbers)
    for one in info.collections:
        table.add_row(
            plain(one.name),
            "damaged" if one.damage else f"{one.rows:,}",
            f"{one.rows_dead:,}",
            str(one.segments_open),
            str(one.segments_sealed),
            size(one.bytes_allocated),
        )
    return table


def _vectors(info: PoolInfo) -> RenderableType | None:
    """What the vectors of collections are, where they have any."""
    if not any(one.dimension for one in info.collections):
        return None
    table = _table(
        "Vectors",
        "name",
        "dimension",
        "metric",
        "type",
        "indexed (recall)",
        "model",
        right=("dimension", "indexed (recall)"),
    )
    for one in info.collections:
        if one.dimension:
            model = plain(one.embedding_model or "-")
            table.add_row(plain(one.name), str(one.dimension), one.metric, one.dtype, _indexed(one), model)
    return table


def _indexed(one: CollectionInfo) -> str:
    """How many vectors the indexes hold, and the worst recall that was measured."""
    if not one.indexes:
        return "-"
    return f"{sum(index.rows for index in one.indexes):,} ({min(index.recall for index in one.indexes):.2f})"


def _lanes(info: PoolInfo) -> RenderableType:
    if not info.lanes:
        return Text("No lane is held and no segment is open: nobody writes.", style="dim")
    table = _table("Lanes (rights to append)", "lane", "holder", "label", "since", "open segments", right=("open segments",))
    for lane in info.lanes:
        table.add_row(
            f"{lane.node}.{lane.lane}",
            _process(lane.pid) if lane.held else Text("free", style="dim"),
            plain(lane.label),
            _since(lane.since_us) if lane.held else "",
            str(lane.open_segments),
        )
    return table


def processes_view(sessions: Sequence[SessionInfo]) -> RenderableType:
    """The attached processes: who, since when, in what state, at what cost."""
    numbers = ("behind", "private", "shared")
    table = _table("Attached processes", "node", "process", "label", "since", "state", *numbers, right=numbers)
    for one in sessions:
        table.add_row(
            str(one.node),
            _process(one.pid),
            plain(one.label),
            _since(one.since_us),
            _state(one),
            str(one.generations_behind),
            size(one.memory_private),
            size(one.memory_shared),
        )
    return table


def _process(pid: int) -> str:
    return str(pid) if pid else "-"


def _since(microseconds: int) -> str:
    return age(datetime.fromtimestamp(microseconds / 1e6, UTC)) if microseconds else "-"


def _state(session: SessionInfo) -> Text:
    if session.stopped:
        return Text("stopped", style="bold yellow")
    # Its lock is held, so it lives; its number means nothing here if it runs in another container.
    return Text("running", style="green") if session.alive else Text("elsewhere", style="cyan")


def verify_view(report: VerifyReport) -> RenderableType:
    """The verdict, and each problem with its place and what to do."""
    checked = f"{report.rows:,} rows in {report.segments:,} segments checked in {report.seconds:.2f} s"
    if report.ok:
        return Text.assemble(("Nothing is wrong: ", "bold green"), checked)
    table = _table(f"{len(report.problems)} problem(s)", "offset", "what", "what to do", right=("offset",))
    for problem in report.problems:
        table.add_row(str(problem.offset), plain(problem.what), plain(problem.advice))
    return Group(table, Text(checked, style="dim"))


def maintenance_view(report: MaintenanceReport) -> RenderableType:
    """What maintenance did."""
    did = {
        "segments sealed": report.segments_sealed,
        "segments merged": report.segments_merged,
        "segments freed": report.segments_freed,
        "indexes, columns and postings built": report.blocks_built,
        "unfinished builds undone": report.builds_undone,
        "deletion lists written": report.deletions_written,
    }
    parts = [f"{count:,} {what}" for what, count in did.items() if count]
    parts.append(f"{size(report.bytes_freed)} given back")
    return Text(f"Done in {report.seconds:.2f} s: {', '.join(parts)}.")


def answers_view(
    question: str, hits: Sequence[Hit], collection: str, rows: int, seconds: tuple[float, float]
) -> RenderableType:
    """Ranked answers with their author, age and score. `seconds`: for embedding the question, and for the search."""
    took = f"{rows:,} records of {collection!r}: embedded in {seconds[0] * 1e3:.0f} ms, found in {seconds[1] * 1e3:.1f} ms"
    if not hits:
        return Group(Text("Nothing found.", style="yellow"), plain(took))
    shown = [key for key in KEYS_SHOWN if any(key in hit.metadata for hit in hits)]
    table = Table(title=plain(question), title_justify="left", title_style="bold", header_style="dim", show_lines=True)
    table.add_column("", justify="right")
    table.add_column("answer", ratio=3)
    for key in shown:
        table.add_column(key, ratio=2 if key == "question" else None)
    if not shown:
        table.add_column("metadata", ratio=1)
    table.add_column("age", no_wrap=True)
    table.add_column("score", justify="right")
    for rank, hit in enumerate(hits, start=1):
        facts = [hit.metadata.get(key, "") for key in shown] or [_other_metadata(hit.metadata)]
        answer = hit.text if hit.text is not None else f"(no text: {hit.id})"
        table.add_row(str(rank), plain(answer), *map(plain, facts), age(_time(hit)), f"{hit.score:.3f}")
    return Group(table, Text(plain(took).plain, style="dim"))


def crowd_view(question: str, answers: Sequence[Answer], group: str, seconds: float) -> RenderableType:
    """The crowd's answers, best first: each with who gave it, how long ago, what others made of it, and to what question."""
    took = Text(f"The group {plain(group).plain!r}, asked in {seconds * 1e3:.0f} ms", style="dim")
    if not answers:
        return Group(Text("Nobody of the group has answered this yet.", style="yellow"), took)
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="bold")
    table.add_column()
    for rank, one in enumerate(answers, start=1):
        said = Text.assemble(
            f"{one.score:.3f}  ",
            plain(one.author if one.model is None else f"{one.model}, asked by {one.author}"),
            f", {age(one.created)} ago" if age(one.created) != "now" else ", just now",
            *(f"; {fact}" for fact in _made_of_it(one)),
            style="dim",
        )
        asked = Text.assemble("To: ", plain(one.question), style="dim italic")
        table.add_row(str(rank), Group(plain(one.answer), said, asked, ""))
    return Group(Text.assemble(plain(question), style="bold"), "", table, took)


def _made_of_it(answer: Answer) -> Iterator[str]:
    standing = answer.standing
    if standing.up or standing.down:
        yield f"{standing.up} up, {standing.down} down"
    if standing.confirmed is not None:
        yield f"confirmed {age(standing.confirmed)} ago"
    if standing.superseded_by is not None:
        yield "superseded"
    if answer.similar:
        yield f"{answer.similar} more said so"


def hit_json(hit: Hit) -> dict[str, Any]:
    """A hit as JSON values."""
    return {
        "id": hit.id,
        "score": round(float(hit.score), 6),
        "text": hit.text,
        "metadata": hit.metadata,
        "created": hit.created.isoformat(),
    }


def _other_metadata(metadata: dict[str, Any]) -> str:
    """Key: value lines, without what frameworks keep for themselves (a leading underscore)."""
    return "\n".join(f"{key}: {value}" for key, value in metadata.items() if not key.startswith("_"))


def _time(hit: Hit) -> datetime:
    """When it was said: the metadata's own `time` if it is one, else when the record was made."""
    try:
        said = datetime.fromisoformat(str(hit.metadata["time"]))
    except (KeyError, ValueError):
        return hit.created
    return said if said.tzinfo else said.replace(tzinfo=UTC)
