"""A LlamaIndex chat engine over a group's history: what others were told answers the next one who asks.

Each chat turn asks the history, hands the model what was found as data in the user's own message (never as system text),
and stores the exchange, so that the group's next question finds it, in whichever process. Without a model the history
answers itself, with who said it, or says that nobody has answered yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ChatResponseAsyncGen, ChatResponseGen, MessageRole
from llama_index.core.chat_engine.types import AgentChatResponse, BaseChatEngine, StreamingAgentChatResponse
from llama_index.core.llms.llm import LLM
from llama_index.core.schema import NodeWithScore, TextNode

from sharedrag.history import Answer, History, NewMessage, prompt

_ROLES = {"user": MessageRole.USER, "assistant": MessageRole.ASSISTANT, "system": MessageRole.SYSTEM}


@dataclass(frozen=True)
class _Turn:
    """A question on its way: what was found for it, and what the model is asked (None: `reply` says it without one)."""

    question: str
    answers: list[Answer]
    messages: list[ChatMessage] | None
    reply: str = ""

    @property
    def nodes(self) -> list[NodeWithScore]:
        return [_node(one) for one in self.answers]


class SharedChatEngine(BaseChatEngine):
    """A chat engine for one member of a group: `SharedChatEngine(history, group.id, "bob", llm=llm)`.

    `llm` None answers from the history alone. `conversation` names the chat (one that the group has, or a name of yours);
    by default the first question begins a new one, and `conversation` says its id from then on. `similarity_top_k` answers
    of the group are looked at, and `messages_max` earlier messages of the conversation are sent along. Raises what the
    history raises: `NotFound` unless `user` is a member, `LeaseHeld` while another member has the wheel.

    The exchange is stored before `chat` returns, and before a stream's last token is handed out; a stream that is not
    read to its end is not stored. One engine serves one conversation at a time; any number may share a history.
    """

    def __init__(
        self,
        history: History,
        group: str,
        user: str,
        llm: LLM | None = None,
        *,
        conversation: str | None = None,
        system_prompt: str | None = None,
        similarity_top_k: int = 5,
        messages_max: int = 20,
    ) -> None:
        self.history = history
        self.group = group
        self.user = user
        self.llm = llm
        self.system_prompt = system_prompt
        self.similarity_top_k = similarity_top_k
        self.messages_max = messages_max
        history.groups.member(group, user)
        self.conversation = conversation and history.conversations.create(group, user, id=conversation).id

    # ------------------------------------------------------------------ chatting

    def chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AgentChatResponse:
        """The reply, stored. `chat_history` stands in for the conversation's own earlier messages."""
        turn = self._begin(message, chat_history)
        reply = turn.reply
        if turn.messages is not None:
            assert self.llm is not None
            reply = self.llm.chat(turn.messages).message.content or ""
        return self._finish(turn, reply)

    async def achat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AgentChatResponse:
        """`chat`, with the history asked in a thread and the model by its own asynchronous form."""
        turn = await asyncio.to_thread(self._begin, message, chat_history)
        reply = turn.reply
        if turn.messages is not None:
            assert self.llm is not None
            reply = (await self.llm.achat(turn.messages)).message.content or ""
        return await asyncio.to_thread(self._finish, turn, reply)

    def stream_chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> StreamingAgentChatResponse:
        """The reply as it comes: iterate over `response_gen`."""
        turn = self._begin(message, chat_history)
        if turn.messages is None:
            stream: ChatResponseGen = iter([_said(turn.reply)])  # type: ignore[assignment]
        else:
            assert self.llm is not None
            stream = self.llm.stream_chat(turn.messages)
        return StreamingAgentChatResponse(
            chat_stream=self._kept(turn, stream), source_nodes=turn.nodes, is_writing_to_memory=False
        )

    async def astream_chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> StreamingAgentChatResponse:
        """The reply as it comes: iterate over `async_response_gen()`."""
        turn = await asyncio.to_thread(self._begin, message, chat_history)
        if turn.messages is None:
            stream: ChatResponseAsyncGen = _at_once(turn.reply)
        else:
            assert self.llm is not None
            stream = await self.llm.astream_chat(turn.messages)
        return StreamingAgentChatResponse(
            achat_stream=self._akept(turn, stream), source_nodes=turn.nodes, is_writing_to_memory=False
        )

    def reset(self) -> None:
        """Begin a new conversation with the next question. What was said stays in the group's history."""
        self.conversation = None

    @property
    def chat_history(self) -> list[ChatMessage]:
        """The newest `messages_max` messages of the conversation, oldest first."""
        if self.conversation is None:
            return []
        found, _ = self.history.messages.list(self.group, self.user, self.conversation, limit=self.messages_max)
        said = [one for one in reversed(found) if one.role in _ROLES and one.text.strip()]
        return [ChatMessage(role=_ROLES[one.role], content=one.text) for one in said]

    # ------------------------------------------------------------------ a turn

    def _begin(self, question: str, chat_history: Sequence[ChatMessage] | None) -> _Turn:
        history = self.history
        answers = history.ask(self.group, question, self.similarity_top_k, user=self.user, conversation=self.conversation)
        if self.llm is None:
            return _Turn(question, answers, None, prompt.as_reply(answers))
        direct = history.direct_answer(self.group, question, answers)
        if direct is not None:
            return _Turn(question, answers, None, prompt.as_reply([direct]))
        earlier = self.chat_history if chat_history is None else list(chat_history)
        said = {(one.content or "").strip() for one in earlier}
        data = prompt.as_data([one for one in answers if one.answer.strip() not in said])
        asked = f"{data}\n\n{question}" if data else question
        system = [ChatMessage(role=MessageRole.SYSTEM, content=self.system_prompt)] if self.system_prompt else []
        return _Turn(question, answers, [*system, *earlier, ChatMessage(role=MessageRole.USER, content=asked)])

    def _finish(self, turn: _Turn, reply: str) -> AgentChatResponse:
        """Store the exchange."""
        history = self.history
        if self.conversation is None:
            self.conversation = history.conversations.create(self.group, self.user).id
        by_model = turn.messages is not None
        assert self.llm is not None or not by_model
        model = self.llm.metadata.model_name if by_model and self.llm is not None else "sharedrag"
        new = [NewMessage(role="user", text=turn.question)]
        if reply.strip():
            new.append(NewMessage(role="assistant", text=reply, model=model, crowd=by_model))
        stored = history.messages.append(self.group, self.user, self.conversation, new)
        return AgentChatResponse(
            response=reply,
            source_nodes=turn.nodes,
            metadata={"conversation": self.conversation, "messages": [one.id for one in stored]},
        )

    def _kept(self, turn: _Turn, stream: ChatResponseGen) -> Generator[ChatResponse, None, None]:
        """The stream, one step late, so that the exchange is stored before its last part is handed out."""
        reply, held = "", None
        for part in stream:
            reply += part.delta or ""
            if held is not None:
                yield held
            held = part
        self._finish(turn, reply)
        if held is not None:
            yield held

    async def _akept(self, turn: _Turn, stream: ChatResponseAsyncGen) -> AsyncGenerator[ChatResponse, None]:
        reply, held = "", None
        async for part in stream:
            reply += part.delta or ""
            if held is not None:
                yield held
            held = part
        await asyncio.to_thread(self._finish, turn, reply)
        if held is not None:
            yield held


def _node(answer: Answer) -> NodeWithScore:
    """An exchange as a source node; its metadata says who answered and when."""
    metadata: dict[str, Any] = {
        "author": answer.author,
        "asked_by": answer.asked_by,
        "created": answer.created.isoformat(),
        "conversation": answer.conversation,
        "answer_id": answer.answer_id,
    }
    node = TextNode(id_=answer.exchange, text=f"{answer.question}\n\n{answer.answer}", metadata=metadata)
    return NodeWithScore(node=node, score=answer.score)


def _said(text: str) -> ChatResponse:
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=text)


async def _at_once(text: str) -> ChatResponseAsyncGen:
    yield _said(text)
