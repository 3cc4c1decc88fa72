"""Chats from files: each kind of file gives the messages that are in it, and says what it left out."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharedrag.chats import Chats, UnreadableData, exchanges, load
from sharedrag.chats.slack import plain_text


def _write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def _said(path: Path) -> list[tuple[str | None, str, str]]:
    return [(one.author, one.question, one.answer) for one in exchanges(load(path).messages)]


# ---------------------------------------------------------------------- JSON lines


def test_messages_of_json_lines_are_paired_by_reply_to(tmp_path: Path) -> None:
    """Fields go by their usual names; whatever else is known of a message goes along as metadata."""
    rows = [
        {
            "id": "q",
            "chat": "c",
            "user": "ann",
            "role": "question",
            "content": "Any ferry?",
            "timestamp": "2025-06-02T08:00:00",
        },
        {"id": "a", "chat": "c", "user": "tess", "role": "answer", "content": "No.", "parent_id": "q", "island": "maui"},
    ]
    (exchange,) = exchanges(load(_write_lines(tmp_path / "chat.jsonl", rows)).messages)
    assert (exchange.id, exchange.asker, exchange.author) == ("a", "ann", "tess")
    assert (exchange.question, exchange.answer, exchange.extra) == ("Any ferry?", "No.", {"island": "maui"})


def test_question_and_answer_in_one_row(tmp_path: Path) -> None:
    """A row with a question and its answer is an exchange by itself; one without an answer is counted."""
    rows = [
        {"id": "f1", "question": "Pool?", "answer": "Yes.", "entity": "Hotel"},
        {"id": "f2", "question": "Parking?", "answer": ""},
    ]
    loaded = load(_write_lines(tmp_path / "faq.jsonl", rows))
    assert [(one.id, one.answer, one.extra) for one in exchanges(loaded.messages)] == [("f1", "Yes.", {"entity": "Hotel"})]
    assert loaded.skipped == {"without answer": 1}


def test_conversations_of_turns(tmp_path: Path) -> None:
    """A row with a list of turns is a conversation; prompts and tools are no part of it, content parts are joined."""
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Any ferry?"}]},
        {"role": "assistant", "content": "No."},
        {"role": "tool", "content": "{}"},
        {"role": "user", "content": "And to Molokai?"},
        {"role": "assistant", "content": "Fly."},
    ]
    loaded = load(_write_lines(tmp_path / "tuning.jsonl", [{"messages": turns}]))
    found = exchanges(loaded.messages)
    assert [(one.opening, one.question, one.answer) for one in found] == [
        (None, "Any ferry?", "No."),
        ("Any ferry?", "And to Molokai?", "Fly."),
    ]
    assert loaded.skipped == {"system or tool turns": 2}


def test_a_number_names_a_message_in_its_conversation_only(tmp_path: Path) -> None:
    """Line numbers of two logs do not meet."""
    rows = [
        {"log": log, "line": line, "user": f"u{line}", "text": text, "reply_to": reply}
        for log in ("monday", "tuesday")
        for line, text, reply in ((1, f"{log}?", []), (2, f"{log}!", [1]))
    ]
    assert _said(_write_lines(tmp_path / "logs.jsonl", rows)) == [
        ("u2", "monday?", "monday!"),
        ("u2", "tuesday?", "tuesday!"),
    ]


def test_repeated_ids_are_one_message(tmp_path: Path) -> None:
    """Of two messages with one id the later text stays, and the other is counted."""
    rows = [{"id": "a", "text": "old"}, {"id": "b", "text": "other"}, {"id": "a", "text": "new"}]
    loaded = load(_write_lines(tmp_path / "twice.jsonl", rows))
    assert [message.text for message in loaded.messages] == ["new", "other"]
    assert loaded.skipped == {"repeated ids": 1}


def test_chats_are_read_as_often_as_they_are_iterated(tmp_path: Path) -> None:
    """Each pass gives the same messages, knows how far it is, and counts anew what it left out."""
    rows = [{"id": f"m{number}", "text": "Aloha" if number % 10 else ""} for number in range(100)]
    chats = Chats(_write_lines(tmp_path / "chat.jsonl", rows))
    shares = [chats.done for _ in chats]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.1
    assert 0.9 < shares[-1] < 1
    assert [one.id for one in chats] == [row["id"] for row in rows if row["text"]]
    assert (chats.done, chats.skipped, chats.kind) == (1.0, {"without text": 10}, "rows")


def test_lines_are_read_as_they_are_wanted(tmp_path: Path) -> None:
    """The first message is there before the rest is looked at: what is broken further on is told when it is reached."""
    path = tmp_path / "long.jsonl"
    path.write_bytes(b'{"text": "Aloha"}\n{"text": ')
    messages = iter(Chats(path))
    assert next(messages).text == "Aloha"
    with pytest.raises(UnreadableData, match="line 2"):
        next(messages)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"text": "fine"}\n{"text": ', "line 2 is not JSON"),
        (b"[1, 2]", "not an array of objects"),
        (b'[{"text": "cut off', "not JSON"),
        (b'"only a string"\n', "line 1 is a str"),
        (b"", "no messages in it"),
        (b'{"text": " "}\n', "1 without text"),
        (b"PK\x03\x04 cut off", "not a readable zip"),
        (b"PAR1 cut off", "not a readable Parquet file"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(tmp_path: Path, content: bytes, what: str) -> None:
    """The error names the file and what is wrong, and says what to do."""
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(UnreadableData, match=what) as caught:
        load(path)
    assert caught.value.path == str(path)
    assert caught.value.hint


# ---------------------------------------------------------------------- Parquet


def test_parquet_with_speakers_and_texts(tmp_path: Path) -> None:
    """Texts and speakers in lists are a conversation, and `response` is its last turn."""
    table = pa.table(
        {
            "id": ["d1"],
            "speakers": [["U", "S", "U"]],
            "texts": [["A hotel?", "The Belfry.", "Parking?"]],
            "response": ["Yes, free."],
        }
    )
    pq.write_table(table, tmp_path / "chats.parquet")
    found = exchanges(load(tmp_path / "chats.parquet").messages)
    assert [(one.id, one.question, one.answer) for one in found] == [
        ("d1:1", "A hotel?", "The Belfry."),
        ("d1:3", "Parking?", "Yes, free."),
    ]


@pytest.mark.parametrize(
    ("file", "messages_min", "exchanges_min"),
    [
        ("travel_chats_dstc11.parquet", 19_000, 9_000),
        ("travel_faq_dstc9.parquet", 24_078, 12_039),
        ("group_chat_irc.parquet", 29_000, 1_500),
    ],
)
def test_real_chats(shared_data: Path, file: str, messages_min: int, exchanges_min: int) -> None:
    """Real sets of three shapes are read in full, and no exchange lacks a text."""
    loaded = load(shared_data / file)
    found = exchanges(loaded.messages)
    assert len(loaded.messages) >= messages_min
    assert len(found) >= exchanges_min
    assert all(one.question.strip() and one.answer.strip() for one in found)
    assert len({one.id for one in found}) == len(found)


# ---------------------------------------------------------------------- ChatGPT


def _chatgpt_node(key: str, parent: str | None, role: str, text: str, **more: Any) -> dict[str, Any]:
    content = {"content_type": "text", "parts": [text]}
    message = {"id": key, "author": {"role": role}, "create_time": 1_700_000_000.5, "content": content, **more}
    return {"id": key, "message": message, "parent": parent, "children": []}


def _chatgpt_export() -> list[dict[str, Any]]:
    nodes = [
        {"id": "root", "message": None, "parent": None, "children": ["s"]},
        _chatgpt_node("s", "root", "system", ""),
        _chatgpt_node("q", "s", "user", "Any ferry?"),
        _chatgpt_node("old", "q", "assistant", "Yes, a big one."),
        _chatgpt_node("call", "q", "assistant", "search()", recipient="web"),
        _chatgpt_node("a1", "call", "assistant", "I looked."),
        _chatgpt_node("hidden", "a1", "user", "hint", metadata={"is_visually_hidden_from_conversation": True}),
        _chatgpt_node("a2", "hidden", "assistant", "There is none."),
    ]
    mapping = {node["id"]: node for node in nodes}
    return [{"title": "Ferries", "conversation_id": "c1", "mapping": mapping, "current_node": "a2"}, {"title": "empty"}]


def test_chatgpt_export_follows_the_branch_last_seen(tmp_path: Path) -> None:
    """Regenerated answers, prompts, tool calls and hidden turns are left out; pieces of an answer are one."""
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps(_chatgpt_export()))
    loaded = load(path)
    (exchange,) = exchanges(loaded.messages)
    assert (exchange.question, exchange.answer, exchange.author) == ("Any ferry?", "I looked.\n\nThere is none.", "ChatGPT")
    assert (exchange.time, exchange.extra) == ("2023-11-14T22:13:20.500000+00:00", {"title": "Ferries"})
    assert loaded.skipped == {"system, tool or hidden turns": 3, "conversations without messages": 1}


def test_chatgpt_export_as_zip_and_folder_in_shards(tmp_path: Path) -> None:
    """The zip that ChatGPT sends, and the folder it unpacks to, are read alike, also in several shards."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "conversations-000.json").write_text(json.dumps(_chatgpt_export()))
    (folder / "conversations-001.json").write_text("[]")
    (folder / "user.json").write_text("{}")
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    assert load(folder).messages == load(tmp_path / "export.zip").messages
    assert len(load(folder).messages) == 2


def test_chatgpt_tree_that_runs_in_a_circle_ends(tmp_path: Path) -> None:
    """A damaged export whose parents form a circle gives what it has, and no endless loop."""
    export = _chatgpt_export()
    export[0]["mapping"]["root"]["parent"] = "a2"
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps(export))
    assert len(exchanges(load(path).messages)) == 1


# ---------------------------------------------------------------------- Slack


def _slack_folder(folder: Path) -> Path:
    (folder / "hawaii").mkdir(parents=True)
    users = [
        {"id": "U1", "name": "ann", "profile": {"display_name": "", "real_name": "Ann"}},
        {"id": "U2", "name": "bob", "profile": {"display_name": "Bob"}},
    ]
    (folder / "users.json").write_text(json.dumps(users))
    (folder / "channels.json").write_text(json.dumps([{"id": "C1", "name": "hawaii"}]))
    first = [
        {
            "type": "message",
            "user": "U1",
            "ts": "1700000000.000100",
            "thread_ts": "1700000000.000100",
            "text": "<@U2> any ferry?",
        },
        {"type": "message", "subtype": "channel_join", "user": "U2", "ts": "1700000001.0", "text": "joined"},
        {"type": "message", "bot_id": "B1", "ts": "1700000002.0", "text": "Reminder: ferry?"},
    ]
    second = [
        {
            "type": "message",
            "user": "U2",
            "ts": "1700086400.000200",
            "thread_ts": "1700000000.000100",
            "text": "No &amp; never, see <https://a.example/x|this>",
        }
    ]
    (folder / "hawaii" / "2023-11-15.json").write_text(json.dumps(second))
    (folder / "hawaii" / "2023-11-14.json").write_text(json.dumps(first))
    return folder


def test_slack_export_pairs_threads_across_days(tmp_path: Path) -> None:
    """A thread's reply on another day is the answer; people have their names, notices and bots are counted."""
    loaded = load(_slack_folder(tmp_path / "export"))
    (exchange,) = exchanges(loaded.messages)
    assert (exchange.asker, exchange.question) == ("Ann", "@Bob any ferry?")
    assert (exchange.author, exchange.answer) == ("Bob", "No & never, see this")
    assert exchange.id == "hawaii:1700086400.000200"
    assert loaded.skipped == {"notices and bots": 2}


def test_one_day_of_a_slack_channel(tmp_path: Path) -> None:
    """A single file of a channel is read too; without users.json people go by their ids."""
    folder = _slack_folder(tmp_path / "export")
    loaded = load(folder / "hawaii" / "2023-11-14.json")
    assert [(one.conversation, one.author) for one in loaded.messages] == [("hawaii", "U1")]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<@U1|ann> hi", "@Ann hi"),
        ("in <#C1|hawaii>", "in #hawaii"),
        ("<!here> look", "@here look"),
        ("<https://a.example>", "https://a.example"),
        ("1 &lt; 2", "1 < 2"),
    ],
)
def test_slack_markup_is_written_out(markup: str, text: str) -> None:
    """People, channels, calls and links stand as readers see them."""
    assert plain_text(markup, {"U1": "Ann"}) == text


def test_a_folder_that_is_no_export(tmp_path: Path) -> None:
    """A folder without the files of an export is refused with what it must hold."""
    with pytest.raises(UnreadableData, match=r"conversations\.json, or users\.json"):
        load(tmp_path)
