"""The LangChain chat history: what LangChain's own in-memory history does, kept by many processes at once."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest
from langchain_core.chat_history import BaseChatMessageHistory, InMemoryChatMessageHistory
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolCall,
    ToolMessage,
)
from langchain_core.runnables.history import RunnableWithMessageHistory

from sharedrag import Pool
from sharedrag.langchain import SharedRagChatMessageHistory
from tests.langchain.conftest import Elsewhere

# LangChain recommends its agents' persistence for new programs; these classes stay until its version 2.
pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning")

MESSAGES: list[BaseMessage] = [
    SystemMessage("Be brief.", id="s1"),
    HumanMessage("Is there a ferry from Maui to Lāna‘i? \N{FERRY}", name="ann", additional_kwargs={"room": "hawaii"}),
    AIMessage(
        "",
        id="a1",
        tool_calls=[ToolCall(name="timetable", args={"from": "Maui", "days": [1, 2]}, id="call-1")],
        usage_metadata={"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
        response_metadata={"model": "m", "score": 0.5},
    ),
    ToolMessage("five a day", tool_call_id="call-1", artifact={"rows": [[1, "a"]]}, status="success"),
    FunctionMessage(content="old style", name="function"),
    HumanMessage([{"type": "text", "text": "And"}, {"type": "image_url", "image_url": {"url": "data:,"}}]),
    HumanMessage("cut in the midst of an emoji: \ud83d"),
    AIMessage("Yes."),
]


@pytest.fixture(params=["LangChain's in-memory history", "one process", "two processes"])
def history(request: pytest.FixtureRequest) -> BaseChatMessageHistory:
    """An empty history: LangChain's own to compare with, ours, and ours written by another process."""
    if request.param.startswith("LangChain"):
        return InMemoryChatMessageHistory()
    pool: Pool = request.getfixturevalue("pool")
    if request.param == "one process":
        return SharedRagChatMessageHistory(pool, "team", "session")
    written = WrittenElsewhere(pool, "team", "session")
    written.elsewhere = request.getfixturevalue("elsewhere")
    return written


class WrittenElsewhere(SharedRagChatMessageHistory):
    """A history that another process writes, and that is read here."""

    elsewhere: Elsewhere

    def _plain(self) -> SharedRagChatMessageHistory:
        return SharedRagChatMessageHistory(self.pool, self.collection, self.session_id)

    def add_messages(self, messages: list[BaseMessage]) -> None:  # type: ignore[override]
        """Add there."""
        self.elsewhere(self._plain().add_messages, messages)

    def clear(self) -> None:
        """Clear there."""
        self.elsewhere(self._plain().clear)


def test_every_kind_of_message_comes_back_as_it_was(history: BaseChatMessageHistory) -> None:
    """System, human, AI with tool calls, tool and function messages, with blocks and odd text, in order and equal."""
    history.add_messages(MESSAGES)
    assert history.messages == MESSAGES
    assert [type(one) for one in history.messages] == [type(one) for one in MESSAGES]


def test_messages_are_appended_in_order(history: BaseChatMessageHistory) -> None:
    """Every way of adding appends at the end, and adding none adds none."""
    history.add_user_message("one")
    history.add_ai_message(AIMessage("two"))
    history.add_messages([])
    history.add_message(SystemMessage("three"))
    history.add_messages([HumanMessage("four"), AIMessage("five")])
    assert [one.content for one in history.messages] == ["one", "two", "three", "four", "five"]
    assert str(history) == "Human: one\nAI: two\nSystem: three\nHuman: four\nAI: five"


def test_cleared_it_is_empty_and_goes_on(history: BaseChatMessageHistory) -> None:
    """After `clear` there are no messages, clearing nothing is no error, and new messages are kept."""
    history.add_messages(MESSAGES)
    history.clear()
    history.clear()
    assert history.messages == []
    history.add_user_message("again")
    assert history.messages == [HumanMessage("again")]


async def test_asynchronous_forms(history: BaseChatMessageHistory) -> None:
    """The asynchronous forms do the same."""
    await history.aadd_messages(MESSAGES)
    assert await history.aget_messages() == MESSAGES
    await history.aclear()
    assert await history.aget_messages() == []


def test_the_same_message_twice_is_two_messages(history: BaseChatMessageHistory) -> None:
    """A message that is added again, with its id, stands in the history twice."""
    history.add_messages([HumanMessage("yes", id="same"), HumanMessage("yes", id="same")])
    history.add_message(HumanMessage("yes", id="same"))
    assert len(history.messages) == 3


def test_sessions_and_collections_are_apart(pool: Pool) -> None:
    """Each session of each collection has its own messages, and clearing one leaves the others."""
    places = [("a", "1"), ("a", "2"), ("b", "1"), ("a", '1"'), ("a", "")]
    histories = [SharedRagChatMessageHistory(pool, *place) for place in places]
    for number, one in enumerate(histories):
        one.add_user_message(str(number))
    histories[0].clear()
    assert [[message.content for message in one.messages] for one in histories] == [[], ["1"], ["2"], ["3"], ["4"]]


def test_messages_are_fresh_copies(pool: Pool) -> None:
    """A caller who changes the returned list or its messages changes nothing in the history."""
    history = SharedRagChatMessageHistory(pool)
    history.add_user_message("kept")
    found = history.messages
    found[0].content = "changed"
    found.clear()
    assert history.messages == [HumanMessage("kept")]


@pytest.fixture
def path_only(pool_path: str) -> Iterator[SharedRagChatMessageHistory]:
    """A history that was given a path where no pool is yet."""
    made = SharedRagChatMessageHistory(pool_path, session_id="s")
    yield made
    made.pool.close()


def test_a_path_is_enough_and_pickling_keeps_the_place(path_only: SharedRagChatMessageHistory) -> None:
    """A history given a path makes the pool, and finds its messages when unpickled."""
    path_only.add_user_message("hello")
    back: SharedRagChatMessageHistory = pickle.loads(pickle.dumps(path_only))
    assert back.messages == [HumanMessage("hello")]


def test_a_runnable_remembers_by_it(pool: Pool) -> None:
    """`RunnableWithMessageHistory` puts the session's messages before the question, and both into the history."""
    model = GenericFakeChatModel(messages=iter([AIMessage("first"), AIMessage("second")]))
    chain = RunnableWithMessageHistory(model, lambda session: SharedRagChatMessageHistory(pool, "chain", session))
    for question in ("one", "two"):
        chain.invoke([HumanMessage(question)], config={"configurable": {"session_id": "s"}})
    found = SharedRagChatMessageHistory(pool, "chain", "s").messages
    assert [one.content for one in found] == ["one", "first", "two", "second"]


def _say(history: SharedRagChatMessageHistory, name: str, count: int) -> None:
    for number in range(count):
        history.add_messages([HumanMessage(f"{number}?", name=name), AIMessage(f"{number}!", name=name)])


def test_two_processes_that_append_at_once_lose_nothing(pool: Pool, elsewhere: Elsewhere) -> None:
    """Of two times 300 exchanges in one session all are there, each side's in its order, no question without its answer."""
    history = SharedRagChatMessageHistory(pool, "team", "both")
    theirs = elsewhere.start(_say, history, "theirs", 300)
    _say(history, "ours", 300)
    theirs.result(60)
    found = history.messages
    assert len(found) == 1200
    for name in ("ours", "theirs"):
        said = [one.content for one in found if one.name == name]
        assert said == [f"{number}{mark}" for number in range(300) for mark in "?!"]


def test_what_another_process_appends_during_a_clear_stays(pool: Pool, elsewhere: Elsewhere) -> None:
    """While one process clears again and again, a message of the other is deleted by a clear or there at the end."""
    history = SharedRagChatMessageHistory(pool, "team", "cleared")
    theirs = elsewhere.start(_say, history, "theirs", 200)
    while not theirs.done():
        history.clear()
    theirs.result()
    left = [one.content for one in history.messages]
    expected = [f"{number}{mark}" for number in range(200) for mark in "?!"]
    assert left == expected[len(expected) - len(left) :]
    history.add_user_message("last")
    assert history.messages[-1] == HumanMessage("last")
