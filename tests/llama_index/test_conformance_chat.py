"""What LlamaIndex's two chat store interfaces promise, wherever the calls are executed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    ChatMessage,
    ImageBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.storage.chat_store.base_db import MessageStatus

from tests.llama_index.staging import Alternating

Stores = Callable[[str], Alternating]
ACTIVE, ARCHIVED = MessageStatus.ACTIVE, MessageStatus.ARCHIVED


@pytest.fixture
def chats(stores: Stores) -> Alternating:
    """A chat store of the first interface."""
    return stores("SharedChatStore")


@pytest.fixture
def database(stores: Stores) -> Alternating:
    """A chat store of the second interface, which is asynchronous only."""
    return stores("SharedAsyncChatStore")


def said(*contents: str, **kwargs: Any) -> list[ChatMessage]:
    """Messages with these contents."""
    return [ChatMessage(role=MessageRole.USER, content=one, **kwargs) for one in contents]


def contents(messages: Iterable[ChatMessage] | None) -> list[str | None]:
    """What the messages say."""
    return [one.content for one in messages or ()]


MESSAGES = [
    ChatMessage(role="user", content="Which ferry goes to Maui?"),
    ChatMessage(role="assistant", content="None. Ⓕly! 🌺\n\u2028\x00"),
    ChatMessage(role="tool", content="", additional_kwargs={"tool_call_id": "1", "nested": {"a": [1, None, 1.5]}}),
    ChatMessage(role="system", blocks=[]),
    ChatMessage(role="user", blocks=[TextBlock(text="see"), ImageBlock(image=b"aGVsbG8=", image_mimetype="image/png")]),
    ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_call_id="7", tool_name="f", tool_kwargs={"x": [1]})]),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.role.value)
def test_a_message_comes_back_as_it_was(stores: Stores, message: ChatMessage) -> None:
    """Role, blocks and additional arguments survive in both stores."""
    chats = stores("SharedChatStore")
    chats.add_message("k", message)
    assert chats.get_messages("k") == [message]
    database = stores("SharedAsyncChatStore")
    database.add_message("other", message)
    assert database.get_messages("other") == [message]


def test_messages_stand_in_the_order_they_were_added(chats: Alternating) -> None:
    """Each conversation is a list of its own; keys are listed in the order of their first messages."""
    assert chats.get_messages("a") == []
    assert chats.get_keys() == []
    for number in range(6):
        chats.add_message("ba"[number % 2], said(str(number))[0])
    assert contents(chats.get_messages("a")) == ["1", "3", "5"]
    assert contents(chats.get_messages("b")) == ["0", "2", "4"]
    assert chats.get_keys() == ["b", "a"]


def test_set_messages_replaces_the_conversation(chats: Alternating) -> None:
    """Only what was set last is there; other conversations are not touched."""
    chats.add_message("k", said("old")[0])
    chats.add_message("other", said("other")[0])
    chats.set_messages("k", said("new 1", "new 2"))
    chats.set_messages("fresh", said("fresh"))
    assert contents(chats.get_messages("k")) == ["new 1", "new 2"]
    assert contents(chats.get_messages("other")) == ["other"]
    chats.add_message("k", said("more")[0])
    assert contents(chats.get_messages("k")) == ["new 1", "new 2", "more"]
    chats.set_messages("k", [])
    assert chats.get_messages("k") == []
    assert chats.get_messages("fresh") == said("fresh")


@pytest.mark.core_differs("its asynchronous form takes no index")
@pytest.mark.parametrize(
    ("index", "expected"),
    [(0, "Xabc"), (1, "aXbc"), (3, "abcX"), (9, "abcX"), (-1, "abXc"), (-3, "Xabc"), (-9, "Xabc")],
)
def test_a_message_may_be_inserted(chats: Alternating, index: int, expected: str) -> None:
    """An index means what it means to `list.insert`, and later appends come after."""
    chats.set_messages("k", said("a", "b", "c"))
    chats.add_message("k", said("X")[0], idx=index)
    assert contents(chats.get_messages("k")) == list(expected)
    chats.add_message("k", said("z")[0])
    chats.add_message("k", said("Y")[0], idx=index)
    model = [*expected, "z"]
    model.insert(index, "Y")
    assert contents(chats.get_messages("k")) == model


def test_a_conversation_is_deleted_and_returned(chats: Alternating) -> None:
    """What was deleted is given back; an unknown key gives None."""
    assert chats.delete_messages("k") is None
    chats.set_messages("k", said("a", "b"))
    chats.set_messages("other", said("c"))
    assert contents(chats.delete_messages("k")) == ["a", "b"]
    assert chats.delete_messages("k") is None
    assert chats.get_messages("k") == []
    assert chats.get_keys() == ["other"]


@pytest.mark.parametrize(("index", "gone"), [(0, "a"), (1, "b"), (2, "c"), (-1, "c"), (-3, "a")])
def test_one_message_is_deleted_and_returned(chats: Alternating, index: int, gone: str) -> None:
    """The index is that of the list; the others stay."""
    chats.set_messages("k", said("a", "b", "c"))
    assert chats.delete_message("k", index).content == gone
    assert contents(chats.get_messages("k")) == [one for one in "abc" if one != gone]


@pytest.mark.core_differs("it raises IndexError for some of these")
@pytest.mark.parametrize("index", [3, 99, -4, -99])
def test_an_index_beyond_the_list_deletes_nothing(chats: Alternating, index: int) -> None:
    """There is no such message, so None is returned."""
    assert chats.delete_message("unknown", 0) is None
    chats.set_messages("k", said("a", "b", "c"))
    assert chats.delete_message("k", index) is None
    assert contents(chats.get_messages("k")) == ["a", "b", "c"]


@pytest.mark.core_differs("it raises IndexError when nothing is left")
def test_the_last_message_is_deleted_and_returned(chats: Alternating) -> None:
    """From the end, until none is left; then None."""
    assert chats.delete_last_message("k") is None
    chats.set_messages("k", said("a", "b"))
    assert [chats.delete_last_message("k").content for _ in range(2)] == ["b", "a"]
    assert chats.delete_last_message("k") is None
    assert chats.get_messages("k") == []


@pytest.mark.core_differs("get_messages hands out its own list")
def test_lists_are_fresh(chats: Alternating) -> None:
    """Whoever changes a list or a message that he was given, changes nothing in the store."""
    chats.set_messages("k", said("a", "b"))
    for _ in range(4):
        got = chats.get_messages("k")
        assert contents(got) == ["a", "b"]
        got[0].blocks.clear()
        got.clear()


@pytest.mark.parametrize("key", ["", "a:b", "1:a", "ключ 🌺", "nul\x00", "x" * 3000])
def test_any_unicode_string_is_a_conversations_key(stores: Stores, key: str) -> None:
    """A key's characters mean nothing to the stores."""
    chats = stores("SharedChatStore")
    chats.add_message(key, said("a")[0])
    chats.add_message(f"{key}x", said("b")[0])
    assert chats.get_keys() == [key, f"{key}x"]
    assert contents(chats.delete_messages(key)) == ["a"]
    assert contents(chats.get_messages(f"{key}x")) == ["b"]


def test_messages_are_added_one_by_one_and_in_lists(database: Alternating) -> None:
    """Both ways append, and each key is a conversation of its own."""
    assert database.get_messages("k") == []
    database.add_message("k", said("1")[0])
    database.add_messages("k", said("2", "3"))
    database.add_messages("other", said("x"))
    database.add_message("k", said("4")[0])
    assert contents(database.get_messages("k")) == ["1", "2", "3", "4"]
    assert database.count_messages("k") == 4
    assert database.count_messages("none") == 0
    assert set(database.get_keys()) == {"k", "other"}


def test_a_window_of_messages_is_got(database: Alternating) -> None:
    """`offset` skips and `limit` bounds, together as well."""
    database.add_messages("k", said(*"abcde"))
    assert contents(database.get_messages("k", limit=2)) == ["a", "b"]
    assert contents(database.get_messages("k", limit=2, offset=1)) == ["b", "c"]
    assert contents(database.get_messages("k", limit=9, offset=3)) == ["d", "e"]
    assert contents(database.get_messages("k", limit=0)) == []
    assert contents(database.get_messages("k", limit=5, offset=9)) == []


@pytest.mark.core_differs("SQLite wants a limit with an offset")
def test_an_offset_needs_no_limit(database: Alternating) -> None:
    """All from the offset on."""
    database.add_messages("k", said(*"abcde"))
    assert contents(database.get_messages("k", offset=3)) == ["d", "e"]


def test_archived_messages_are_apart_and_keep_their_place(database: Alternating) -> None:
    """The oldest active ones are archived and returned; with status None all stand in the order they were added."""
    database.add_messages("k", said("a", "b", "c", "d"))
    database.add_messages("other", said("x"))
    assert contents(database.archive_oldest_messages("k", 2)) == ["a", "b"]
    assert contents(database.get_messages("k")) == ["c", "d"]
    assert contents(database.get_messages("k", status=ARCHIVED)) == ["a", "b"]
    database.add_message("k", said("e")[0])
    database.add_message("k", said("f")[0], status=ARCHIVED)
    assert contents(database.get_messages("k", status=None)) == ["a", "b", "c", "d", "e", "f"]
    assert contents(database.archive_oldest_messages("k", 99)) == ["c", "d", "e"]
    assert database.archive_oldest_messages("k", 1) == []
    assert [database.count_messages("k", status=one) for one in (ACTIVE, ARCHIVED, None)] == [0, 6, 6]
    assert contents(database.get_messages("other")) == ["x"]


def test_the_oldest_messages_are_deleted_and_returned(database: Alternating) -> None:
    """Active ones only, oldest first."""
    database.add_messages("k", said("a", "b", "c", "d"))
    database.archive_oldest_messages("k", 1)
    assert contents(database.delete_oldest_messages("k", 2)) == ["b", "c"]
    assert contents(database.get_messages("k", status=None)) == ["a", "d"]
    assert contents(database.delete_oldest_messages("k", 9)) == ["d"]
    assert database.delete_oldest_messages("k", 1) == []
    assert database.delete_oldest_messages("none", 1) == []


def test_messages_are_set_with_a_status(database: Alternating) -> None:
    """What was there goes, archived messages too."""
    database.add_messages("k", said("a", "b"))
    database.archive_oldest_messages("k", 1)
    database.set_messages("k", said("c", "d"))
    assert contents(database.get_messages("k", status=None)) == ["c", "d"]
    database.set_messages("k", said("e"), status=ARCHIVED)
    assert contents(database.get_messages("k")) == []
    assert contents(database.get_messages("k", status=ARCHIVED)) == ["e"]


def test_messages_are_deleted_by_status(database: Alternating) -> None:
    """Those with the status go; without one, all of the conversation."""
    for key in ("k", "l", "m"):
        database.add_messages(key, said("a", "b"))
        database.archive_oldest_messages(key, 1)
    database.delete_messages("k", status=ARCHIVED)
    database.delete_messages("l", status=ACTIVE)
    database.delete_messages("m")
    assert [contents(database.get_messages(key, status=None)) for key in "klm"] == [["b"], ["a"], []]
    assert set(database.get_keys()) == {"k", "l"}


@pytest.mark.core_differs("it takes the number of a row in its table")
@pytest.mark.parametrize(("index", "gone"), [(0, "b"), (1, "c"), (-1, "d"), (3, None), (-4, None)])
def test_one_active_message_is_deleted(database: Alternating, index: int, gone: str | None) -> None:
    """The index is that of the list that `get_messages` returns."""
    database.add_messages("k", said("a", "b", "c", "d"))
    database.archive_oldest_messages("k", 1)
    assert contents([deleted] if (deleted := database.delete_message("k", index)) else []) == [gone] * (gone is not None)
    assert contents(database.get_messages("k", status=None)) == [one for one in "abcd" if one != gone]


@pytest.mark.core_differs("its stores share nothing")
def test_both_interfaces_show_the_same_conversations(stores: Stores) -> None:
    """A message that one store was given is in the other; archived ones are hidden from the first."""
    chats, database = stores("SharedChatStore"), stores("SharedAsyncChatStore")
    chats.add_message("k", said("a")[0])
    database.add_message("k", said("b")[0])
    assert contents(chats.get_messages("k")) == contents(database.get_messages("k")) == ["a", "b"]
    database.archive_oldest_messages("k", 1)
    assert contents(chats.get_messages("k")) == ["b"]
    assert chats.get_keys() == ["k"]
    chats.delete_messages("k")
    assert database.get_messages("k", status=None) == []
