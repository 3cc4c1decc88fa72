"""The `sharedrag` command, run in this process by typer's runner and once for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import TextNode
from typer.testing import CliRunner, Result

from sharedrag import Collection, Pool, cli_view
from sharedrag.cli import app
from sharedrag.embed import MINILM, LightEmbedder
from sharedrag.info import MaintenanceReport, PoolInfo, Problem, SessionInfo, VerifyReport
from sharedrag.llama_index import SharedVectorStore

COMMANDS = ("create", "info", "verify", "maintain", "ask", "import", "export", "top", "demo")
EMBEDDER = LightEmbedder()
TWO_YEARS_AGO = datetime.now(UTC) - timedelta(days=800)

EXCHANGES = [
    ("No. The only regular ferry runs between Maui and Lanai; for Oahu you fly.", "Is there a ferry to Oahu?", "Kai"),
    ("Yes, parking and entry are booked online, up to 30 days ahead.", "Is Diamond Head reserved?", "Leilani"),
    ("Before nine, when the wind is still asleep.", "When is snorkelling best?", "Noa"),
]


def run(*arguments: str) -> Result:
    """The outcome of a command line."""
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "240"})


def shown(text: str) -> str:
    """Output as one line, without the frames around it: wrapping must not matter."""
    return " ".join("".join(" " if char in "│┃╭╮╰╯─" else char for char in text).split())


@pytest.fixture
def history(pool: Pool) -> Collection:
    """Three exchanges of a travel group, as the demo writes them."""
    collection = pool.collection("history", dimension=384, embedding_model=MINILM)
    asked = [f"{question} {answer}" for answer, question, _ in EXCHANGES]
    collection.put(
        ids=[f"m{number}" for number in range(len(EXCHANGES))],
        vectors=EMBEDDER.embed_texts(asked),
        texts=[answer for answer, _, _ in EXCHANGES],
        metadata=[
            {"question": question, "author": author, "node": "maui", "time": TWO_YEARS_AGO.isoformat()}
            for _, question, author in EXCHANGES
        ],
    )
    return collection


class TestHelp:
    def test_the_command_alone_teaches(self) -> None:
        """Without arguments the command lists its commands and shows how to begin."""
        output = run("--help").output
        assert all(command in output for command in COMMANDS)
        assert "sharedrag create /dev/shm/team.pool" in output

    @pytest.mark.parametrize("command", [command for command in COMMANDS if command != "demo"])
    def test_each_command_shows_an_example(self, command: str) -> None:
        """The help of every command ends in a line that can be copied."""
        result = run(command, "--help")
        assert result.exit_code == 0
        assert f"sharedrag {command} /dev/shm/" in result.output

    def test_a_wrong_command_line_is_exit_code_2(self) -> None:
        """An unknown option is told apart from a failure."""
        assert run("info", "--colour", "blue").exit_code == 2


class TestCreate:
    def test_it_makes_a_pool_that_opens(self, pool_path: str) -> None:
        """What `create` made, a process opens without creating; the capacity is what was asked."""
        result = run("create", pool_path, "--capacity", "32 MiB", "--nodes", "2")
        assert result.exit_code == 0, result.output
        assert "Created" in result.stdout
        with Pool.open(pool_path, node=1) as opened:
            info = opened.info()
        assert len(info.nodes) == 2
        assert cli_view.size(info.capacity) in result.stdout

    def test_a_pool_that_is_there_is_left_alone(self, pool: Pool, history: Collection) -> None:
        """A second `create` says so, and nothing is lost."""
        result = run("create", pool.path)
        assert result.exit_code == 0
        assert "left as it is" in result.stdout
        assert len(history) == len(EXCHANGES)

    @pytest.mark.parametrize("nonsense", [("--capacity", "lots"), ("--capacity", "1 KiB"), ("--nodes", "100000")])
    def test_nonsense_is_a_wrong_command_line(self, pool_path: str, nonsense: tuple[str, str]) -> None:
        """A capacity that is no size or far too small, or too many nodes: exit code 2, and no file is made."""
        result = run("create", pool_path, *nonsense)
        assert result.exit_code == 2
        assert nonsense[1] in shown(result.stderr)
        assert not Path(pool_path).exists()


class TestInfo:
    def test_tables_tell_what_is_there_and_who_is(self, pool: Pool, history: Collection) -> None:
        """Collections with their rows, the lane and the process that holds it, and the attached processes are shown."""
        result = run("info", pool.path)
        assert result.exit_code == 0, result.output
        assert "history" in result.stdout
        assert MINILM in result.stdout
        assert result.stdout.count(str(os.getpid())) >= 2, "as a lane's holder and as an attached process"
        assert "sharedrag info" in result.stdout

    def test_it_fits_80_columns(self, pool: Pool, history: Collection) -> None:
        """With long names, large numbers and labels nothing is cut off, and no line is longer than a small terminal."""
        pool.collection("history.exchanges", dimension=384, embedding_model=MINILM)
        seen = pool.info()
        big = [one.model_copy(update={"rows": 12_345_678, "rows_dead": 1_234_567}) for one in seen.collections]
        sessions = [one.model_copy(update={"label": "uvicorn worker 12 of node maui"}) for one in seen.sessions]
        info = seen.model_copy(update={"collections": big, "sessions": sessions})
        drawn = text_of(cli_view.pool_view(info), width=80)
        assert max(len(line) for line in drawn.splitlines()) <= 80
        assert all(whole in drawn for whole in ("history.exchanges", "12,345,678", "1,234,567", MINILM, "float32", "cosine"))
        assert "…" not in drawn

    def test_json_is_the_model(self, pool: Pool, history: Collection) -> None:
        """--json prints PoolInfo, with this process's own memory in bytes."""
        result = run("info", pool.path, "--json")
        info = PoolInfo.model_validate_json(result.stdout)
        assert [(one.name, one.rows) for one in info.collections] == [("history", 3)]
        own = [one for one in info.sessions if one.pid == os.getpid()]
        assert own
        assert all(one.memory_private and one.memory_private > 1 << 20 for one in own)

    def test_the_pools_own_pages_are_nobodys_private_memory(self, pool: Pool) -> None:
        """Writing 24 MB of vectors adds to what is shared, though this process alone has touched them."""
        rows = 16_000
        collection = pool.collection("big", dimension=384)
        collection.put(ids=["warm-up"], vectors=np.ones((1, 384)))
        before = own_session(pool)
        vectors = np.ones((1000, 384), dtype=np.float32)
        for start in range(0, rows, 1000):
            collection.put(ids=[str(start + row) for row in range(1000)], vectors=vectors)
        after = own_session(pool)
        grown = rows * 384 * 4
        assert after.memory_shared and before.memory_shared
        assert after.memory_private and before.memory_private
        assert after.memory_shared - before.memory_shared >= grown
        assert after.memory_private - before.memory_private < grown / 2

    def test_an_empty_pool_says_what_to_do(self, pool: Pool) -> None:
        """Without collections and writers, a sentence stands where the tables would."""
        output = shown(run("info", pool.path).stdout)
        assert "No collections yet" in output
        assert "nobody writes" in output

    def test_watch_shows_what_another_process_writes(self, pool: Pool, history: Collection) -> None:
        """A real `sharedrag info --watch --json` sees a new row by itself; Ctrl-C ends it quietly."""
        command = [sys.executable, "-m", "sharedrag", "info", pool.path, "--json", "--watch", "--every", "0.05"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watcher:
            try:
                assert watcher.stdout is not None
                assert rows_of(watcher.stdout.readline()) == 3
                history.put(ids=["m9"], vectors=EMBEDDER.embed_texts(["aloha"]), texts=["aloha"])
                assert any(rows_of(watcher.stdout.readline()) == 4 for _ in range(100))
                watcher.send_signal(signal.SIGINT)
                _, errors = watcher.communicate(timeout=20)
            finally:
                watcher.kill()
        assert watcher.returncode == 130
        assert errors == ""

    def test_a_stopped_and_a_foreign_process_are_told_apart(self) -> None:
        """A process that is stopped, and one whose number means nothing here, are marked."""
        common: dict[str, Any] = {
            "node": 0,
            "slot": 1,
            "label": "worker",
            "since_us": 0,
            "generations_behind": 0,
            "memory_private": None,
            "memory_shared": None,
        }
        sessions = [
            SessionInfo(pid=11, alive=True, stopped=True, **common),
            SessionInfo(pid=12, alive=False, stopped=False, **common),
            SessionInfo(pid=13, alive=True, stopped=False, **common),
        ]
        lines = {
            line.split()[1]: line for line in text_of(cli_view.processes_view(sessions)).splitlines() if "worker" in line
        }
        assert "stopped" in lines["11"]
        assert "elsewhere" in lines["12"]
        assert "running" in lines["13"]


class TestVerify:
    def test_a_sound_pool_is_exit_code_0(self, pool: Pool, history: Collection) -> None:
        """It says that nothing is wrong, and how much it looked at."""
        result = run("verify", pool.path)
        assert result.exit_code == 0, result.output
        assert "Nothing is wrong" in result.stdout
        assert "3 rows" in result.stdout

    def test_a_flipped_byte_is_found_with_its_place(self, pool: Pool, history: Collection) -> None:
        """One changed letter of a text gives exit code 1, an offset near it, and advice."""
        where = Path(pool.path).read_bytes().index(b"The only regular ferry")
        with open(pool.path, "r+b") as file:
            file.seek(where)
            file.write(b"X")
        result = run("verify", pool.path, "--json")
        assert result.exit_code == 1
        (problem,) = json.loads(result.stdout)["problems"]
        assert 0 < problem["offset"] < Path(pool.path).stat().st_size
        assert problem["advice"]
        table = run("verify", pool.path)
        assert table.exit_code == 1
        assert str(problem["offset"]) in table.stdout

    def test_problems_are_shown_whole(self) -> None:
        """Each problem's offset, what it is and what to do stand in the table."""
        report = VerifyReport(path="p", problems=[Problem(offset=4096, what="a bad sum", advice="Delete 'm1'")])
        output = shown(text_of(cli_view.verify_view(report)))
        assert "1 problem" in output
        assert "4096 a bad sum Delete 'm1'" in output


class TestMaintain:
    def test_it_says_what_it_did(self, pool: Pool, history: Collection) -> None:
        """It runs and reports; the records are still there."""
        result = run("maintain", pool.path)
        assert result.exit_code == 0, result.output
        assert "Done in" in result.stdout
        assert len(history) == 3

    def test_all_is_indexed_then_also_where_others_maintain(self, pool_path: str) -> None:
        """A load, `maintain`, and there is the index, though the loader is still there and at it with its own share."""
        with Pool.open(pool_path, create=True, capacity="64 MiB", maintenance=0.01) as pool:
            collection = pool.collection("history", dimension=32)
            vectors = np.random.default_rng(1).standard_normal((12_000, 32), np.float32)
            for start in range(0, 12_000, 500):
                collection.put([str(number) for number in range(start, start + 500)], vectors[start : start + 500])
            result = run("maintain", pool_path)
            assert result.exit_code == 0 and "built" in shown(result.stdout), result.output
            assert sum(one.rows for one in pool.info().collections[0].indexes) > 9_000

    def test_it_says_so_where_another_does_not_end(self, pool_path: str) -> None:
        """After the time it may wait; that is an error for scripts, since nothing was done."""
        with Pool.open(pool_path, create=True, capacity="64 MiB", maintenance=False) as pool, pool._maintainer._elected():
            assert_clean_error(run("maintain", pool_path, "--wait", "0.1"), "another process was maintaining", "0.1 s")

    def test_with_stay_it_goes_on_until_it_is_stopped(self, pool_path: str) -> None:
        """What others write while it stays is indexed by it and nobody else; SIGTERM ends it with code 0."""
        with Pool.open(pool_path, create=True, capacity="64 MiB", maintenance=False) as pool:
            command = [sys.executable, "-m", "sharedrag", "maintain", pool_path, "--stay", "--share", "1"]
            process = subprocess.Popen(command)
            try:
                collection = pool.collection("history", dimension=32)
                vectors = np.random.default_rng(1).standard_normal((4000, 32), np.float32)
                collection.put([str(number) for number in range(4000)], vectors)
                deadline = time.monotonic() + 60
                while not pool.info().collections[0].indexes:
                    assert time.monotonic() < deadline and process.poll() is None
                    time.sleep(0.05)
            finally:
                process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0

    def test_each_figure_is_named(self) -> None:
        """What was done is listed with its number, what was not done is left out."""
        report = MaintenanceReport(elected=True, segments_merged=4, bytes_freed=3 << 20, seconds=0.5)
        assert text_of(cli_view.maintenance_view(report)).strip() == (
            "Done in 0.50 s: 4 segments merged, 3.0 MiB given back."
        )


class TestAsk:
    def test_the_right_answer_comes_first_with_its_author(self, pool: Pool, history: Collection) -> None:
        """A paraphrase finds the exchange that answers it: answer, question, author and age in one row."""
        result = run("ask", pool.path, "Can I take a boat from Maui to Honolulu?")
        assert result.exit_code == 0, result.output
        rows = [line.replace("│", " ").split("  ") for line in result.stdout.splitlines() if "2 years" in line]
        first = [cell.strip() for cell in rows[0] if cell.strip()]
        assert first[:6] == ["1", EXCHANGES[0][0], "Is there a ferry to Oahu?", "Kai", "maui", "2 years"]
        assert 0.5 < float(first[6]) <= 1

    def test_what_llama_index_wrote_is_shown_alike(self, pool: Pool) -> None:
        """Nodes that a SharedVectorStore wrote are answers too, with their author, and without LlamaIndex's own keys."""
        nodes = [TextNode(text=answer, metadata={"author": author}) for answer, _, author in EXCHANGES]
        store = SharedVectorStore(pool, "history", embedding_model=MINILM)
        for node in nodes:
            node.embedding = EMBEDDER.embed_query(node.text).tolist()
        store.add(nodes)
        result = run("ask", pool.path, "When should I snorkel?", "-k", "1")
        assert result.exit_code == 0, result.output
        assert "Before nine, when the wind is still asleep." in result.stdout
        assert "Noa" in result.stdout
        assert "_node" not in result.stdout

    def test_json_for_programs(self, pool: Pool, history: Collection) -> None:
        """--json prints the hits, best first, with metadata and scores."""
        hits = json.loads(run("ask", pool.path, "best time to snorkel", "-k", "2", "--json").stdout)
        assert hits[0]["id"] == "m2"
        assert len(hits) == 2
        assert hits[0]["metadata"]["author"] == "Noa"
        assert hits[0]["score"] > hits[1]["score"]

    def test_where_restricts(self, pool: Pool, history: Collection) -> None:
        """--where leaves only the records that have the value, text or JSON; none left is said."""
        hits = json.loads(run("ask", pool.path, "ferry", "--where", "author=Noa", "--json").stdout)
        assert [hit["id"] for hit in hits] == ["m2"]
        history.put(ids=["m5"], vectors=EMBEDDER.embed_texts(["x"]), metadata=[{"year": 2024}])
        hits = json.loads(run("ask", pool.path, "ferry", "--where", "year=2024", "--json").stdout)
        assert [hit["id"] for hit in hits] == ["m5"]
        assert "Nothing found" in run("ask", pool.path, "ferry", "--where", "author=Nobody").stdout

    def test_a_condition_without_value_is_a_wrong_command_line(self, pool: Pool, history: Collection) -> None:
        """--where without '=' is exit code 2."""
        assert run("ask", pool.path, "ferry", "--where", "author").exit_code == 2

    def test_other_metadata_is_shown_when_there_is_no_author(self, pool: Pool) -> None:
        """Records of any other store are shown with what metadata they have, less a framework's own keys."""
        pages = pool.collection("pages", dimension=384)
        pages.put(ids=["p"], vectors=EMBEDDER.embed_texts(["aloha"]), metadata=[{"page": 7, "_node_content": "{secret}"}])
        output = shown(run("ask", pool.path, "aloha").stdout)
        assert "page: 7" in output
        assert "(no text: p)" in output
        assert "secret" not in output

    def test_a_text_cannot_drive_the_terminal(self, pool: Pool) -> None:
        """Escape sequences and markup in a stranger's message are shown, not obeyed."""
        evil = "\x1b]0;owned\x07\x1b[2J[bold red]fine[/] 7"
        pool.collection("history", dimension=384).put(
            ids=["e"], vectors=EMBEDDER.embed_texts([evil]), texts=[evil], metadata=[{"author": "\x1b[31mMallory"}]
        )
        output = run("ask", pool.path, "fine").stdout
        assert "\x1b" not in output
        assert "\x07" not in output
        assert "[bold red]fine[/]" in output
        assert "Mallory" in output

    def test_nothing_to_ask_is_an_error_with_advice(self, pool: Pool) -> None:
        """Without a collection that has vectors, or with several, the panel says what to do."""
        assert_clean_error(run("ask", pool.path, "aloha"), "CollectionNotFound", "Write records")
        pool.collection("a", dimension=384)
        pool.collection("b", dimension=384)
        assert_clean_error(run("ask", pool.path, "aloha"), "CollectionNotFound", "--collection: a, b")

    def test_a_strangers_model_is_an_error_with_advice(self, pool: Pool) -> None:
        """A collection pinned to a model that this command cannot run says which, and does not search with another."""
        pool.collection("history", dimension=3, embedding_model="somebody/else")
        assert_clean_error(run("ask", pool.path, "aloha"), "EmbedderUnavailable", "somebody/else")


class TestErrors:
    @pytest.mark.parametrize("command", ["info", "verify", "maintain"])
    def test_a_missing_pool_is_one_panel(self, pool_path: str, command: str) -> None:
        """The panel names the error, the path and what to do; the exit code is 1; nothing is created."""
        assert_clean_error(run(command, pool_path), "PoolNotFound", Path(pool_path).name, "What to do")
        assert not Path(pool_path).exists()

    def test_a_foreign_file_is_one_panel(self, pool_path: str) -> None:
        """A file that is no pool is refused, and not touched."""
        Path(pool_path).write_bytes(b"I am a letter to my aunt. " * 1000)
        assert_clean_error(run("info", pool_path), "NotAPool")
        assert_clean_error(run("create", pool_path), "NotAPool")
        assert Path(pool_path).read_bytes() == b"I am a letter to my aunt. " * 1000

    def test_a_node_that_is_not_there_is_a_wrong_command_line(self, pool: Pool) -> None:
        """A node number beyond the pool's nodes is exit code 2, with a word on it."""
        result = run("info", pool.path, "--node", "5")
        assert result.exit_code == 2
        assert "node" in shown(result.stderr)


class TestDemo:
    def test_it_becomes_the_demo_with_its_options(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`sharedrag demo OPTIONS` replaces itself by the demo's own program, options and all."""
        called: list[list[str]] = []
        monkeypatch.setattr(os, "execv", lambda program, arguments: called.append([program, *arguments]))
        run("demo", "--quick", "--data", "my.jsonl")
        assert called == [[sys.executable, sys.executable, "-P", "-m", "demos.hawaii", "--quick", "--data", "my.jsonl"]]


class TestWords:
    @pytest.mark.parametrize(
        ("count", "words"),
        [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (512 << 20, "512 MiB"), (5 << 40, "5.0 TiB"), (None, "-")],
    )
    def test_sizes(self, count: int | None, words: str) -> None:
        """Bytes are shown in the unit that suits; what is not known is a dash."""
        assert cli_view.size(count) == words

    @pytest.mark.parametrize(
        ("ago", "words"),
        [
            (timedelta(seconds=-5), "now"),
            (timedelta(seconds=40), "40 s"),
            (timedelta(minutes=5), "5 min"),
            (timedelta(hours=3), "3 h"),
            (timedelta(days=1), "1 day"),
            (timedelta(days=12), "12 days"),
            (timedelta(days=130), "4 months"),
            (timedelta(days=800), "2 years"),
        ],
    )
    def test_ages(self, ago: timedelta, words: str) -> None:
        """Ages are shown in one unit; a clock that runs ahead is 'now', not a negative age."""
        now = datetime(2026, 1, 1, tzinfo=UTC)
        assert cli_view.age(now - ago, now) == words


def own_session(pool: Pool) -> SessionInfo:
    """This process, as its pool sees it."""
    (own,) = (one for one in pool.info().sessions if one.pid == os.getpid())
    return own


def rows_of(line: str) -> int:
    """The rows of the only collection in a line of JSON."""
    return PoolInfo.model_validate_json(line).collections[0].rows


def text_of(renderable: Any, width: int = 200) -> str:
    """A rich renderable as plain text; by default wide enough not to wrap."""
    from rich.console import Console

    console = Console(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def assert_clean_error(result: Result, *parts: str) -> None:
    """Exit code 1, nothing on standard output, and one panel without a traceback that holds all parts."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    message = shown(result.stderr)
    assert "Traceback" not in message
    assert all(part in message for part in parts), message
