"""The tables at the end: nothing lost, how fast, how well found, and what memory it took."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from demos.outcome import Kill, Outcome, Tally, percentile
from demos.questions import AGAIN
from demos.view import milliseconds
from sharedrag.cli_view import plain, size

AROUND_KILL_S = 3.0


def report(outcome: Outcome) -> RenderableType:
    """All tables."""
    parts = [_result(outcome), _memory(outcome), _processes(outcome)]
    if outcome.scores:
        parts.insert(1, _quality(outcome))
    if not outcome.ok:
        parts.append(_failures(outcome))
    return Group(*parts)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _result(outcome: Outcome) -> Table:
    table = Table(title="What happened", title_justify="left", title_style="bold", show_header=False)
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_column("how it was measured", style="dim")
    for what, figure, how in [*_rows(outcome), *_kill(outcome), *_speeds(outcome)]:
        good = what == "lost rows"
        style = ("bold green" if figure == "0" else "bold red") if good else ""
        table.add_row(what, Text(figure, style=style), plain(how))
    return table


def _rows(outcome: Outcome) -> list[tuple[str, str, str]]:
    lost = len(outcome.lost) + len(outcome.changed) + (outcome.kill.missing if outcome.kill else 0)
    more = outcome.unacknowledged
    unsaid = f"; {more:,} more were published by the killed process before it could say so" if more else ""
    return [
        ("rows in the pool", f"{outcome.rows_in_pool:,}", f"of {outcome.total:,} exchanges in four shares"),
        ("acknowledged", f"{outcome.acknowledged:,}", f"the call that put them has returned in its process{unsaid}"),
        ("lost rows", f"{lost:,}", "acknowledged, but not there with their text when another process looked"),
        ("errors", f"{len(outcome.errors):,}", "in all processes, the kill apart"),
        ("pool verified", "no" if outcome.problems else "yes", "every checksum and link of the file"),
    ]


def _kill(outcome: Outcome) -> list[tuple[str, str, str]]:
    kill = outcome.kill
    if kill is None:
        return []
    others = [tally for tally in outcome.tallies if tally.node != kill.node]
    before, after = _rate(others, kill.at - AROUND_KILL_S, kill.at), _rate(others, kill.at, kill.at + AROUND_KILL_S)
    slowest = _slowest(others, kill)
    rows = [
        (
            f"SIGKILL of node {kill.node}",
            f"at {kill.at:.1f} s",
            f"process {kill.pid}; {kill.acknowledged:,} of its rows acknowledged, {kill.missing} of them missing; "
            f"{kill.written_unacknowledged} more there",
        ),
        (
            "the other three",
            f"{before:.1f} -> {after:.1f} rows/s",
            f"{AROUND_KILL_S:.0f} s before and after; slowest of their searches then: {slowest}",
        ),
    ]
    if kill.back_at is not None and kill.restarted_at is not None:
        attach = outcome.tallies[kill.node].attach_ms[-1]
        first = f"; its first put took {milliseconds(kill.first_put_ms)}" if kill.first_put_ms is not None else ""
        how = (
            f"{kill.back_at - kill.restarted_at:.1f} s for interpreter and model, {milliseconds(attach)} for the pool{first}"
        )
        rows.append((f"node {kill.node} restarted", f"at {kill.restarted_at:.1f} s", how))
    return rows


def _rate(tallies: list[Tally], start: float, end: float) -> float:
    rows = sum(start <= moment < end for tally in tallies for moment in tally.acknowledged.values())
    return rows / (end - start)


def _slowest(others: list[Tally], kill: Kill) -> str:
    found = [
        spent
        for tally in others
        for at, spent in zip(tally.asked_at, tally.search_ms, strict=True)
        if kill.at <= at < kill.at + AROUND_KILL_S
    ]
    return milliseconds(max(found)) if found else "none was made"


def _both(values: list[float]) -> str:
    return f"{milliseconds(percentile(values, 50))} / {milliseconds(percentile(values, 99))}"


def _speeds(outcome: Outcome) -> list[tuple[str, str, str]]:
    searches = [one for tally in outcome.tallies for one in tally.search_ms]
    waited = [one for tally in outcome.tallies for one in tally.found_after_ms]
    puts = [one for tally in outcome.tallies for one in tally.put_ms]
    embeds = [one for tally in outcome.tallies for one in tally.embed_ms]
    return [
        (
            "write -> visible, idle, p50 / p99",
            _both(outcome.probes_ms),
            f"put returns in node 0 -> a search in node 1 has found it; {len(outcome.probes_ms):,} records, "
            f"node 1 searching without pause; {outcome.probes_missed} missed",
        ),
        (
            "write -> visible, busy, p50 / p99",
            _both(waited),
            f"the same for {len(waited):,} questions that waited for their answer while four processes embedded",
        ),
        ("search p50 / p99", _both(searches), f"{len(searches):,} questions through LlamaIndex's retriever, all busy"),
        ("put p50 / p99", _both(puts), "through SharedVectorStore.add, all busy"),
        ("embedding an exchange, p50", milliseconds(percentile(embeds, 50)), "the model; one thread a process"),
        (
            "rows/s without the model",
            f"{outcome.ballast_rate:,.0f}",
            "made-up rows with vector, text and metadata, batches of 1,000, four writers at once",
        ),
    ]


def _quality(outcome: Outcome) -> Table:
    table = _table("Was the right answer found?", "questions", "asked", "hit@1", "hit@5", "a look-alike first")
    for score in outcome.scores:
        known = score.kind != "unanswerable"
        table.add_row(
            plain(score.kind.replace("_", " ")),
            f"{score.rows:,}",
            f"{score.first / score.rows:.3f}" if known and score.rows else "-",
            f"{score.among_five / score.rows:.3f}" if known and score.rows else "-",
            f"{score.wrong_first / score.rows:.3f}" if score.rows else "-",
        )
    if outcome.scores[0].kind == AGAIN:
        table.caption = "The chat's own questions word for word: no measure of quality, only of the way there and back."
    else:
        table.caption = "Plain cosine, no ranking. Look-alikes: another island, the opposite, an answer since corrected."
    table.caption_justify = "left"
    return table


def _memory(outcome: Outcome) -> Table:
    table = _table(
        "Memory of four processes", "rows", "one pool", "each process besides", "in all", "a private copy", "four of them"
    )
    if outcome.chat_bill:
        bill = outcome.chat_bill
        table.add_row(
            f"{bill.rows:,} (this chat)",
            size(bill.pool),
            "-",
            size(bill.pool),
            size(bill.private_copy),
            size(4 * bill.private_copy),
        )
    if outcome.bill:
        bill = outcome.bill
        table.add_row(
            f"{bill.rows:,} more (made up)",
            size(bill.pool),
            size(math.ceil(sum(bill.each) / len(bill.each))),
            size(bill.pool + sum(bill.each)),
            size(bill.private_copy),
            size(4 * bill.private_copy),
        )
    table.caption = (
        "One pool: memory behind its file, held once. Besides: growth of a node's own memory from before it wrote its "
        "share of the rows until after 100 searches of all. A private copy: FAISS flat index + dict of texts and "
        "metadata, measured. A pool takes some MiB before its first row, so for a small chat alone it does not pay. "
        f"The made-up rows are dropped again: {size(outcome.pool_after)} are left."
    )
    table.caption_justify = "left"
    return table


def _processes(outcome: Outcome) -> Table:
    table = _table(
        "The four processes, from the kernel's account (smaps)",
        "node",
        "process",
        "rows written",
        "questions",
        "own memory",
        "of the pool mapped",
    )
    for tally, used in zip(outcome.tallies, outcome.usage, strict=False):
        rows, asked = f"{len(tally.acknowledged):,}", f"{len(tally.search_ms):,}"
        table.add_row(f"node {tally.node}", str(tally.pid), rows, asked, size(used.private), size(used.pool_mapped))
    table.caption = "Own memory is Python, LlamaIndex and the embedding model: it would be the same without the pool."
    table.caption_justify = "left"
    return table


def _failures(outcome: Outcome) -> Table:
    table = _table("[bold red]What went wrong[/bold red]", "what")
    said = [
        *(f"lost: {one}" for one in outcome.lost),
        *(f"text differs: {one}" for one in outcome.changed),
        *outcome.errors,
        *(f"verify: {one}" for one in outcome.problems),
    ]
    if outcome.probes_missed:
        said.append(f"{outcome.probes_missed} probes were not found in time")
    written = outcome.acknowledged + outcome.unacknowledged
    if not written == outcome.total == outcome.rows_in_pool:
        said.append(f"{written:,} written, {outcome.total:,} wanted, {outcome.rows_in_pool:,} in the pool")
    for one in said[:20]:
        table.add_row(plain(one))
    return table
