"""`sharedrag import`, `export`, `top` and `ask` of a history, as a user has them: files, a terminal, Ctrl-C."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from struct import pack

import pytest

from sharedrag import Pool, cli_top
from sharedrag.cli_top import NEWEST
from sharedrag.cli_view import plain
from sharedrag.history import History
from sharedrag.watch import PoolWatch
from tests.test_cli import assert_clean_error, run, shown

CHAT = [
    {"id": "1", "room": "hawaii", "user": "ann", "text": "Is there a ferry from Maui to Oahu?", "time": "2025-06-02"},
    {"id": "2", "room": "hawaii", "user": "cid", "text": "No, you fly.", "reply_to": "1", "time": "2025-06-02"},
    {"id": "3", "room": "hawaii", "user": "bob", "text": "Where do I park at Diamond Head?", "time": "2025-06-02"},
    {"id": "4", "room": "hawaii", "user": "cid", "text": "Book it [red]online[/red] first.", "reply_to": "3"},
]


@pytest.fixture
def chat(tmp_path: Path) -> str:
    """A group's chat as JSON lines."""
    path = tmp_path / "hawaii.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in CHAT))
    return str(path)


@pytest.fixture
def imported(pool: Pool, chat: str) -> Pool:
    """A pool with that chat in a group's history."""
    result = run("import", pool.path, chat, "--group", "hawaii", "--create")
    assert result.exit_code == 0, result.output
    return pool


class TestImport:
    def test_it_says_what_came_and_how_fast(self, pool: Pool, chat: str) -> None:
        """The group is made when asked to; counts, the rate and the embedder's share are shown; twice is once."""
        result = run("import", pool.path, chat, "--group", "hawaii", "--create")
        assert result.exit_code == 0, result.output
        assert "Made the group 'hawaii'" in result.stderr
        said = shown(result.stdout)
        assert "4 messages, 2 exchanges are new" in said
        assert re.search(r"messages/s; the embedder took \d+% of it, 4 texts at", said)
        again = shown(run("import", pool.path, chat, "--group", "hawaii").stdout)
        assert "0 messages, 0 exchanges are new" in again
        assert "4 messages were there already" in again

    def test_json_for_programs(self, pool: Pool, chat: str) -> None:
        """All figures, as numbers."""
        told = json.loads(run("import", pool.path, chat, "-g", "hawaii", "--create", "--json").stdout)
        assert (told["total"], told["messages"], told["exchanges"], told["source"]) == (4, 4, 2, "hawaii")
        assert 0 < told["embedder_share"] <= 1

    def test_users_by_pairs_and_by_file(self, pool: Pool, chat: str, tmp_path: Path) -> None:
        """Names are mapped from the command line and from JSON; later ones win."""
        (tmp_path / "users.json").write_text(json.dumps({"ann": "x", "bob": "bob@example.org"}))
        options = ["--user-map", str(tmp_path / "users.json"), "--user-map", "ann=ann@example.org"]
        run("import", pool.path, chat, "--group", "hawaii", "--create", *options)
        history = History(pool)
        (group,) = history.groups.list()
        assert {one.user for one in history.groups.members(group.id)} == {"ann@example.org", "bob@example.org", "cid"}

    def test_wrong_command_lines(self, pool: Pool, chat: str, tmp_path: Path) -> None:
        """A file that is not there, and a map that is none, are exit code 2, before anything is made."""
        assert run("import", pool.path, str(tmp_path / "gone"), "--group", "hawaii", "--create").exit_code == 2
        assert run("import", pool.path, chat, "--group", "hawaii", "--create", "--user-map", "ann").exit_code == 2
        assert pool.collections() == []

    def test_errors_say_what_to_do(self, imported: Pool, chat: str, tmp_path: Path) -> None:
        """An unknown group, a file that is no chat, and a chat without a group are one panel each."""
        assert_clean_error(run("import", imported.path, chat, "--group", "typo"), "no group 'typo'", "'hawaii'", "--create")
        assert_clean_error(run("import", imported.path, chat), "not a file that `sharedrag export` wrote", "--group")
        (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"te')
        result = run("import", imported.path, str(tmp_path / "broken.jsonl"), "--group", "hawaii")
        assert_clean_error(result, "line 2 is not JSON", "UnreadableData")

    def test_ctrl_c_says_how_to_go_on(self, pool: Pool, tmp_path: Path) -> None:
        """In a terminal the bar shows both rates; Ctrl-C stops at a whole batch, and the same again completes it."""
        path = tmp_path / "faq.jsonl"
        path.write_text(
            "\n".join(json.dumps({"id": str(at), "question": f"Why {at}?", "answer": "So."}) for at in range(900))
        )
        terminal = Terminal("import", pool.path, str(path), "--group", "faq", "--create", "--embedder", "light")
        try:
            screen = terminal.until("embedder .* texts/s, .*% of the time")
            assert re.search(r"messages/s", screen)
            terminal.process.send_signal(signal.SIGINT)
            assert "the same command goes on from there" in terminal.until("goes on from there")
            assert terminal.process.wait(60) == 130
        finally:
            terminal.close()
        told = json.loads(run("import", pool.path, str(path), "--group", "faq", "--json").stdout)
        assert told["messages"] + told["already_there"] == 1800
        assert 0 < told["already_there"] < 1800
        assert told["already_there"] % 128 == 0


class TestExport:
    def test_a_pool_there_and_back(self, imported: Pool, tmp_path: Path) -> None:
        """Without a group everything is written, and comes back into another pool as it was."""
        out = tmp_path / "all.parquet"
        result = run("export", imported.path, str(out))
        assert result.exit_code == 0, result.output
        assert f"{len(imported.collection('history')) + 2} records in" in result.stdout
        other = imported.path + ".other"
        run("create", other, "--capacity", "64 MiB")
        assert "2 into 'history.exchanges'" in run("import", other, str(out)).stdout
        assert "ferry" in run("ask", other, "ferry to Oahu?", "--group", "hawaii").stdout

    def test_a_group_without_its_keys(self, imported: Pool, tmp_path: Path) -> None:
        """Of a group's history everything goes along but rights and leases, and nothing of other groups."""
        history = History(imported)
        (group,) = history.groups.list()
        history.keys.create(user="ann", group=group.id)
        history.groups.create("other", owner="eve")
        out = tmp_path / "group.arrow"
        told = json.loads(run("export", imported.path, str(out), "--group", "hawaii", "--json").stdout)
        assert told["collections"] == {"history.exchanges": 2, "history": 9}
        import pyarrow as pa

        rows = pa.ipc.open_file(pa.memory_map(str(out))).read_all()
        metadata = [json.loads(one) for one in rows["metadata"].to_pylist()]
        assert {one["kind"] for one in metadata} == {"group", "member", "conversation", "message", "exchange"}
        assert {one["group"] for one in metadata} == {group.id}

    def test_wrong_command_lines(self, imported: Pool, tmp_path: Path) -> None:
        """Another suffix, and a group beside a collection, are exit code 2; no file is left."""
        assert run("export", imported.path, str(tmp_path / "out.csv")).exit_code == 2
        assert run("export", imported.path, str(tmp_path / "o.arrow"), "-g", "hawaii", "--collection", "x").exit_code == 2
        assert_clean_error(run("export", imported.path, str(tmp_path / "o.arrow"), "--collection", "x"), "no collection 'x'")
        assert [one.name for one in tmp_path.iterdir()] == ["hawaii.jsonl"]


class TestAskTheCrowd:
    def test_the_answer_with_who_gave_it(self, imported: Pool) -> None:
        """The only group is asked; the answer, its author, its age and the question that it answered are shown as text."""
        result = run("ask", imported.path, "Do boats go from Maui to Oahu, a ferry?")
        assert result.exit_code == 0, result.output
        said = shown(result.stdout)
        assert "No, you fly." in said
        assert "cid, " in said
        assert "To: Is there a ferry from Maui to Oahu?" in said
        assert "[red]online[/red]" in run("ask", imported.path, "Where do I park at Diamond Head?").stdout

    def test_votes_are_shown(self, imported: Pool) -> None:
        """What others made of it stands beside it."""
        history = History(imported)
        (group,) = history.groups.list()
        answer = next(one for one in history.messages.recent(group.id, None) if one.text == "No, you fly.")
        history.marks.vote(group.id, "ann", answer.id, 1)
        assert "1 up, 0 down" in shown(run("ask", imported.path, "Is there a ferry from Maui to Oahu?").stdout)

    def test_json_for_programs(self, imported: Pool) -> None:
        """The answers as the library has them."""
        (first, *_) = json.loads(run("ask", imported.path, "Is there a ferry to Oahu?", "--json").stdout)
        assert (first["answer"], first["author"], first["asked_by"]) == ("No, you fly.", "cid", "ann")

    def test_nothing_known_is_no_error(self, imported: Pool) -> None:
        """What nobody answered is said to be so."""
        result = run("ask", imported.path, "zzz qqq xylophone borscht")
        assert result.exit_code == 0
        assert "Nobody of the group has answered this yet" in result.stdout

    def test_an_empty_question(self, imported: Pool) -> None:
        """There is nothing to ask."""
        result = run("ask", imported.path, " ")
        assert result.exit_code == 2
        assert "the question is empty" in shown(result.stderr)

    def test_which_group(self, imported: Pool) -> None:
        """Of several groups one must be named; by name or id."""
        other = History(imported).groups.create("other")
        assert_clean_error(run("ask", imported.path, "ferry?"), "several groups", "'hawaii'", "'other'")
        assert "No, you fly." in run("ask", imported.path, "Is there a ferry to Oahu?", "--group", "hawaii").stdout
        assert "Nobody" in run("ask", imported.path, "Is there a ferry to Oahu?", "--group", other.id).stdout

    def test_a_collection_can_still_be_asked(self, imported: Pool) -> None:
        """With --collection it is the nearest records, as without a history."""
        result = run("ask", imported.path, "ferry?", "--collection", "history.exchanges", "-k", "1")
        assert "records of 'history.exchanges'" in shown(result.stdout)

    def test_a_pool_without_a_history(self, pool: Pool) -> None:
        """To ask a group where there is none is an error, and makes no collection."""
        assert_clean_error(run("ask", pool.path, "ferry?", "--group", "hawaii"), "there is no history")
        assert pool.collections() == []


class TestTop:
    def test_one_look_into_a_pipe(self, imported: Pool) -> None:
        """Where there is no terminal, all of one look is written: nodes, collections, lanes, processes, newest writes."""
        imported.collection("history").put(["live"], texts=["so that a lane is held"])
        result = run("top", imported.path, "--every", "0.05")
        assert result.exit_code == 0, result.output
        for part in ("NODE", "history.exchanges", "LANE", "PROCESS", "sharedrag top", "NEWEST", "so that a"):
            assert part in result.stdout
        assert str(os.getpid()) in result.stdout

    @pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40), (60, 24), (40, 12), (20, 5)])
    def test_it_fits_the_window(self, imported: Pool, width: int, height: int) -> None:
        """No line is longer and there are no more lines than the window has, whatever there is to show."""
        view = cli_top._View(PoolWatch(imported, newest=NEWEST))
        view.look()
        for number in range(60):
            imported.collection("long name of a collection " + "x" * (number % 9)).put(
                [f"日本語 {number}"], texts=["é" * 300]
            )
        view.look()
        from rich.console import Console

        screen = Console(width=width, height=height, force_terminal=True, color_system=None)
        with screen.capture() as captured:
            screen.print(view, end="")
        lines = captured.get().splitlines()
        assert len(lines) <= height
        assert all(len(plain(line).plain) <= width for line in lines)
        if height >= 24:
            assert len(lines) == height
            assert "日本語" in captured.get() and "long name" in captured.get()

    def test_a_live_terminal(self, imported: Pool) -> None:
        """In a terminal of 80 by 24 a write is seen as it happens; q ends it, and the terminal is as it was."""
        terminal = Terminal("top", imported.path, "--every", "0.1")
        try:
            before = termios.tcgetattr(terminal.screen)
            terminal.until("q quits")
            imported.collection("history").put(["live"], texts=["written while watched"], metadata=[{"user": "eve"}])
            terminal.until("eve: written while watched")
            os.write(terminal.screen, b"q")
            assert terminal.process.wait(30) == 0
            assert termios.tcgetattr(terminal.screen)[3] == before[3]
        finally:
            terminal.close()

    def test_ctrl_c_is_a_way_to_end(self, imported: Pool) -> None:
        """As in every such program."""
        terminal = Terminal("top", imported.path)
        try:
            terminal.until("q quits")
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.process.wait(30) == 0
        finally:
            terminal.close()

    def test_the_map_shows_all_kinds(self, imported: Pool) -> None:
        """The cells of a node's map are as many as there is room for, and what is free is told from what is not."""
        (node,) = PoolWatch(imported).sample().nodes
        line = cli_top._map(node, 40)
        drawn = "".join(segment.text for segment in line)
        assert len(drawn) == 40
        assert set(drawn) == {"■", "·"}
        whole = cli_top._map(node.model_copy(update={"runs": []}), 7)
        assert [segment.text for segment in whole] == ["·" * 7]
        assert cli_top._map(node, 0) == []

    @pytest.mark.parametrize(
        ("wanted", "room", "given"),
        [([1, 1], 9, [1, 1]), ([5, 1, 9], 9, [4, 1, 4]), ([3, 3], 0, [0, 0]), ([], 5, []), ([2, 8], 6, [2, 4])],
    )
    def test_room_is_shared_out(self, wanted: list[int], room: int, given: list[int]) -> None:
        """Who wants little gets it; the others share the rest."""
        assert cli_top._shared_out(wanted, room) == given


class Terminal:
    """A command in a terminal of 80 by 24."""

    def __init__(self, *arguments: str) -> None:
        self.screen, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, pack("HHHH", 24, 80, 0, 0))
        environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        command = [sys.executable, "-m", "sharedrag", *arguments]
        environment["TERM"] = "xterm"
        self.process = subprocess.Popen(
            command, env=environment, stdin=inner, stdout=inner, stderr=inner, start_new_session=True
        )
        os.close(inner)
        self.seen = ""

    def until(self, pattern: str, seconds: float = 60) -> str:
        """Everything shown until the pattern was, without control sequences."""
        end = time.monotonic() + seconds
        for data in self._read(end):
            self.seen += data
            text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.seen)
            if re.search(pattern, text):
                return text
        raise AssertionError(f"{pattern!r} was not shown: {self.seen[-2000:]!r}")

    def _read(self, end: float) -> Iterator[str]:
        while (left := end - time.monotonic()) > 0:
            if select.select([self.screen], [], [], left)[0]:
                try:
                    yield os.read(self.screen, 65536).decode(errors="replace")
                except OSError:  # the command ended
                    return

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        os.close(self.screen)
