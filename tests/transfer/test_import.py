"""Chats into a group's history: who said what to whom, when; twice is once; stopped and taken up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharedrag import Pool
from sharedrag.chats import Message as Said
from sharedrag.chats.messages import Newest
from sharedrag.embed import Vectors
from sharedrag.history import Group, History, Message, NotFound
from sharedrag.transfer import Imported, import_chats, importing
from sharedrag.transfer.exporting import export
from tests.history.helpers import WordsEmbedder

ROOM = [
    {"id": "1", "room": "hawaii", "user": "ann", "text": "Any ferry to Maui?", "time": "2025-06-02T08:00:00+02:00"},
    {"id": "2", "room": "hawaii", "user": "bob", "text": "Nice day"},
    {"id": "3", "room": "hawaii", "user": "cid", "text": "No, you fly.", "reply_to": "1", "time": "2025-06-02T09:00:00"},
    {"id": "4", "room": "hawaii", "user": "ann", "text": "And to Lanai?", "reply_to": "3"},
    {"id": "5", "room": "hawaii", "user": "cid", "text": "There is a boat.", "reply_to": "4"},
]
TURNS = [{"role": "user", "content": "Any ferry?"}, {"role": "assistant", "content": "No."}]


@pytest.fixture
def history(pool: Pool) -> History:
    """A history in a new pool."""
    return History(pool, embedder=WordsEmbedder())


@pytest.fixture
def group(history: History) -> Group:
    """An empty group."""
    return history.groups.create("hawaii")


def lines(path: Path, rows: list[Any]) -> Path:
    """A file of JSON lines."""
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def said(history: History, group: Group) -> list[Message]:
    """All messages, the oldest first."""
    return [history.messages.get(group.id, None, None, one.id) for one in history.store.find("message", group=group.id)]


def exchanges(history: History) -> list[dict[str, Any]]:
    """All exchanges' metadata and text."""
    return [{**one.metadata, "text": one.text} for one in history.store.exchanges.find()]


def test_people_in_a_room(history: History, group: Group, tmp_path: Path) -> None:
    """Authors are members, times are their own or the file's, replies to questions make exchanges."""
    path = lines(tmp_path / "room.jsonl", ROOM)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    told = import_chats(history, group.id, path, user="importer")
    assert (told.source, told.total, told.messages, told.exchanges) == ("room", 5, 5, 2)
    messages = said(history, group)
    assert [one.user for one in messages] == ["ann", "bob", "cid", "ann", "cid"]
    assert {one.role for one in messages} == {"user"}
    assert messages[0].created == datetime(2025, 6, 2, 6, tzinfo=UTC)
    assert messages[1].created == datetime.fromtimestamp(1_700_000_000, UTC)
    assert messages[2].created == datetime(2025, 6, 2, 9, tzinfo=UTC)
    assert [(one["asked_by"], one["author"]) for one in exchanges(history)] == [("ann", "cid")] * 2
    assert {one.user for one in history.groups.members(group.id)} == {"ann", "bob", "cid"}


def test_a_question_leans_on_what_it_replies_to(history: History, group: Group, tmp_path: Path) -> None:
    """In a room the turn before a follow-up is what it replies to, not what somebody said in between."""
    leaning = importing._Leaning({"hawaii"}, Newest(10))
    first, between = Said("1", "hawaii", "Any boat?", "ann"), Said("2", "hawaii", "Nice day", "bob")
    follow_up = Said("3", "hawaii", "And to Lanai?", "ann", reply_to="1")
    for one in (first, between, follow_up):
        leaning.note(one, None)
        leaning._known[one.id] = one
    found = leaning.of(follow_up)
    assert found is not None
    assert (found.question, found.answer) == ("Any boat?", "")


def test_a_model_answers_on_behalf_of_who_asked(history: History, group: Group, tmp_path: Path) -> None:
    """Without names, questions are the importing user's, and answers a model's."""
    told = import_chats(history, group.id, lines(tmp_path / "chat.jsonl", [{"id": "c", "messages": TURNS}]), user="ann")
    assert told.exchanges == 1
    assert [(one.user, one.role, one.text) for one in said(history, group)] == [
        ("ann", "user", "Any ferry?"),
        ("ann", "assistant", "No."),
    ]
    assert exchanges(history)[0]["text"] == "Any ferry?\n\nNo."


def test_chatgpt(history: History, group: Group, tmp_path: Path) -> None:
    """The model is named as the export does, the conversation keeps its title, and the file's name does not matter."""
    times = {"create_time": 1_700_000_000.5}
    nodes: list[dict[str, Any]] = [
        {"id": "q", "parent": None, "children": ["a"], "message": {**times, "id": "q", "author": {"role": "user"}}},
        {"id": "a", "parent": "q", "children": [], "message": {**times, "id": "a", "author": {"role": "assistant"}}},
    ]
    nodes[0]["message"]["content"] = {"content_type": "text", "parts": ["Any ferry?"]}
    nodes[1]["message"] |= {"content": {"content_type": "text", "parts": ["No."]}, "metadata": {"model_slug": "gpt-5"}}
    chat = {"title": "Ferries", "conversation_id": "c1", "current_node": "a", "mapping": {one["id"]: one for one in nodes}}
    for name in ("conversations.json", "again.json"):
        (tmp_path / name).write_text(json.dumps([chat]))
        told = import_chats(history, group.id, tmp_path / name, user="ann")
        assert told.source == "chatgpt"
    assert told.already_there == 2
    question, answer = said(history, group)
    assert (question.user, answer.user, answer.role, answer.model) == ("ann", "ann", "assistant", "gpt-5")
    assert answer.created == datetime(2023, 11, 14, 22, 13, 20, 500_000, UTC)
    (conversation,), _ = history.conversations.list(group.id, "ann")
    assert conversation.metadata == {"title": "Ferries", "source": "chatgpt", "name": "c1"}


def test_users_are_mapped(history: History, group: Group, tmp_path: Path) -> None:
    """Names of the file become users of ours; what cannot be shown in a name is replaced."""
    rows = [{"id": "1", "user": "Ann Lee", "text": "Hi?"}, {"id": "2", "user": "b\x1b[31mob", "text": "Hi."}]
    import_chats(history, group.id, lines(tmp_path / "a.jsonl", rows), user="x", users={"Ann Lee": "ann@example.org"})
    assert [one.user for one in said(history, group)] == ["ann@example.org", "b\ufffd[31mob"]


def test_twice_is_once_and_more_is_more(history: History, group: Group, tmp_path: Path) -> None:
    """A longer export of the same chat adds what is new; another file's ids are its own unless it is said otherwise."""
    path = lines(tmp_path / "room.jsonl", ROOM[:3])
    import_chats(history, group.id, path, user="x")
    again = import_chats(history, group.id, path, user="x")
    assert (again.messages, again.already_there, again.embedded) == (0, 3, 0)
    more = import_chats(history, group.id, lines(path, ROOM), user="x")
    assert (more.messages, more.already_there, more.exchanges) == (2, 3, 1)
    moved = path.rename(tmp_path / "moved.jsonl")
    assert import_chats(history, group.id, moved, user="x", source="room").messages == 0
    assert import_chats(history, group.id, moved, user="x").messages == 5


def test_rates_are_told(history: History, group: Group, tmp_path: Path) -> None:
    """After each batch: how far it is, how fast, and what of it was the embedder's."""
    rows = [{"id": str(at), "question": f"Why {at}?", "answer": f"Because {at}."} for at in range(500)]
    seen: list[Imported] = []
    progress: list[int] = []

    def look(state: Imported) -> None:
        seen.append(state)
        progress.append(state.done)

    told = import_chats(history, group.id, lines(tmp_path / "faq.jsonl", rows), user="x", progress=look)
    assert progress == sorted(progress)
    assert len(progress) > 2
    assert progress[-1] == told.total == 1000
    assert (told.exchanges, told.embedded) == (500, 1000)
    assert 0 < told.embedder_share <= 1
    assert told.rate == told.done / told.seconds


def test_replies_across_batches(history: History, group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is answered is found in the batch before, which is not written yet, and in all before that."""
    monkeypatch.setattr(importing, "BATCH", 2)
    assert import_chats(history, group.id, lines(tmp_path / "room.jsonl", ROOM), user="x").exchanges == 2
    messages = said(history, group)
    assert [one.text for one in messages] == [row["text"] for row in ROOM]


def test_an_own_export_into_another_group(history: History, group: Group, tmp_path: Path) -> None:
    """The messages of an exported history, even without vectors, are a chat like any other: authors, times, answers."""
    import_chats(history, group.id, lines(tmp_path / "room.jsonl", ROOM), user="x")
    import_chats(history, group.id, lines(tmp_path / "chat.jsonl", [{"id": "c", "messages": TURNS}]), user="dan")
    export(history.pool, tmp_path / "out.parquet", vectors=False)
    other = history.groups.create("other")
    told = import_chats(history, other.id, tmp_path / "out.parquet", user="x")
    assert (told.source, told.messages, told.exchanges) == ("sharedrag", 7, 3)
    before, after = said(history, group), said(history, other)
    assert [(one.user, one.role, one.text, one.created) for one in after] == [
        (one.user, one.role, one.text, one.created) for one in before
    ]
    assert import_chats(history, other.id, tmp_path / "out.parquet", user="x").messages == 0


def test_a_group_that_is_not_there(history: History, tmp_path: Path) -> None:
    """Nothing is imported into nowhere."""
    with pytest.raises(NotFound):
        import_chats(history, "grp_none", lines(tmp_path / "room.jsonl", ROOM), user="x")


IMPORTING = """
import sys
from sharedrag import Pool
from sharedrag.history import History
from sharedrag.transfer import import_chats, importing
from tests.history.helpers import WordsEmbedder
importing.BATCH = 20
with Pool.open(sys.argv[1], maintenance=False) as pool:
    history = History(pool, embedder=WordsEmbedder())
    import_chats(history, sys.argv[2], sys.argv[3], user="x", progress=lambda state: print(state.done, flush=True))
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_stopped_midway_the_next_goes_on(history: History, group: Group, tmp_path: Path, stop: signal.Signals) -> None:
    """Killed or interrupted, an import leaves whole batches; the same again ends where one alone would have."""
    rows = [{"id": str(at), "question": f"Why {at}?", "answer": f"Because {at}."} for at in range(400)]
    path = lines(tmp_path / "faq.jsonl", rows)
    command = [sys.executable, "-c", IMPORTING, history.pool.path, group.id, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as importer:
        assert importer.stdout is not None
        importer.stdout.readline()
        importer.send_signal(stop)
        importer.wait(60)
    there = len(said(history, group))
    assert 0 < there < 800
    assert there % 20 == 0
    told = import_chats(history, group.id, path, user="x")
    assert (told.messages, told.already_there) == (800 - there, there)
    assert len(said(history, group)) == 800
    assert len(exchanges(history)) == 400


def test_two_at_once(history: History, group: Group, tmp_path: Path) -> None:
    """Two processes that import the same file leave what one would have."""
    rows = [{"id": str(at), "question": f"Why {at}?", "answer": f"Because {at}."} for at in range(300)]
    path = lines(tmp_path / "faq.jsonl", rows)
    command = [sys.executable, "-c", IMPORTING, history.pool.path, group.id, str(path)]
    importers = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [one.wait(100) for one in importers] == [0, 0]
    assert len(said(history, group)) == 600
    assert len(exchanges(history)) == 300
    assert len(history.conversations.list(group.id, "x", limit=1000)[0]) == 300


def test_memory_is_bounded(history: History, group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file ten times as long no more is held at once."""
    monkeypatch.setattr(importing, "REMEMBERED", 100)
    peaks = []
    for count in (500, 5000):
        rows = ({"id": str(at), "user": "ann", "room": f"r{at // 50}", "text": f"{at} " + "x" * 500} for at in range(count))
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        tracemalloc.start()
        import_chats(history, group.id, path, user="x")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0] + (4 << 20)


class QuickEmbedder(WordsEmbedder):
    """Any vectors: here nobody searches."""

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors, all the same."""
        return np.full((len(texts), self.dimension), self.dimension**-0.5, np.float32)


@pytest.mark.parametrize(
    ("file", "messages", "least"),
    [("group_chat_irc.parquet", 29_582, 1500), ("travel_chats_dstc11.parquet", 19_924, 9000)],
)
def test_real_chats(pool: Pool, shared_data: Path, file: str, messages: int, least: int) -> None:
    """Real sets come in whole; twice is once."""
    history = History(pool, embedder=QuickEmbedder())
    group = history.groups.create("real")
    first = import_chats(history, group.id, shared_data / file, user="x")
    assert first.messages == messages
    assert first.exchanges >= least
    again = import_chats(history, group.id, shared_data / file, user="x")
    assert (again.messages, again.already_there) == (0, messages)
