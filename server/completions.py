"""A completion from question to stored exchange, whoever answers: the upstream with the crowd's words as data, or it.

1. `prepare` (off the event loop): which conversation, has this request been answered before, what does the crowd know.
2. The reply: the upstream's, or the crowd's own words with who said them, or that nobody has answered yet.
3. `keep` (off the event loop): the question and the reply become messages, before the client is told that it has all.

A real upstream's answer makes an exchange under the user who asked. What only repeats the crowd, or says that nobody
knows, is stored so that it never comes back as an answer. A reply that broke off is not stored. What cannot be stored is
still given to the client, with `"stored": false`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec, TypeVar

import orjson
from pydantic import BaseModel

from server import shapes
from server.auth import Principal
from server.problems import BAD_REQUEST, Trouble
from server.transcript import Transcript, text_of
from server.upstream import Upstream, UpstreamError, as_json
from server.work import Overloaded, Work
from sharedrag.errors import PoolFull, SharedRagError
from sharedrag.history import History, prompt
from sharedrag.history.errors import Conflict, LeaseHeld, LeaseLost, NotFound
from sharedrag.history.models import Answer, NewMessage

P = ParamSpec("P")
T = TypeVar("T")

ANSWERS_MAX = 5
#: Of a question, what is searched for: somebody may have pasted a whole document, which the upstream is to see.
SEARCHED_CHARACTERS_MAX = 32_768
#: An SDK that repeats a request itself does so within this time.
RETRY_S = 600
#: How long another attempt may take from storing its answer to noting where it is.
NOTED_TRIES, NOTED_PAUSE_S = 20, 0.05
#: How long a finished reply waits for a place among the threads.
KEEP_PATIENCE_S = 10.0
#: Ids of chats that a front end does not keep itself (Open WebUI's temporary ones): what it forgets, the group never knows.
_FORGOTTEN_CHATS = ("temporary:", "local:")
#: The model wants something done before it answers.
_UNFINISHED = ("tool_calls", "function_call")
Source = Literal["upstream", "crowd", "nobody", "chore"]

_log = logging.getLogger("sharedrag.server")


@dataclass(frozen=True)
class Asked:
    """A request for a completion, as the client made it."""

    body: dict[str, Any]
    conversation: str | None = None  # as the client names it
    chat: str | None = None  # a front end's own chat id: a name only among its user's
    task: str | None = None  # what the client wants for itself, such as a title, where it says so
    lease_token: int | None = None
    idempotency_key: str | None = None
    repeated: bool = False  # the client's SDK says that it has sent this before

    @property
    def streamed(self) -> bool:
        """Whether chunks are wanted."""
        return bool(self.body.get("stream"))

    @property
    def forgotten(self) -> bool:
        """Whether the chat is one that nobody keeps."""
        return (self.chat or "").startswith(_FORGOTTEN_CHATS)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the usage."""
        options = self.body.get("stream_options")
        return isinstance(options, Mapping) and bool(options.get("include_usage"))

    @property
    def choices(self) -> int:
        """How many replies are wanted."""
        return self.body.get("n") or 1


@dataclass
class Plan:
    """What is to be done for a request, and what is known of it so far."""

    group: str
    user: str
    asked: Asked
    transcript: Transcript
    source: Source
    name: str = ""  # what the conversation is made under where it is not there yet
    conversation: str = ""  # its id; none for a chore
    begun: bool = False  # whether the conversation is there already
    answers: list[Answer] = field(default_factory=list)
    text: str = ""  # the reply, unless it is the upstream's
    head: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    attempt: str = ""  # under which the exchange is stored, once
    request: str = ""  # what a repetition is known by
    kept: Kept | None = None
    direct: bool = False


class Kept(BaseModel):
    """Where the question and its reply were stored."""

    conversation: str
    question_id: str
    answer_id: str


class Crowd(BaseModel):
    """The object `sharedrag` in a completion (in a stream, in its last chunk)."""

    source: Source
    conversation: str | None
    stored: bool
    question_id: str | None = None
    answer_id: str | None = None
    direct: bool = False
    answers: list[Answer] = []


# ---------------------------------------------------------------------- before the reply (blocking)


def prepare(history: History, who: Principal, asked: Asked, has_upstream: bool) -> Plan:
    """What is to be done. Raises what the history raises: not a member, another group's conversation, the wheel taken."""
    group, user = who.place
    history.groups.member(group, user)
    transcript = Transcript(asked.body["messages"], task=bool(asked.task))
    plan = Plan(group, user, asked, transcript, "upstream" if has_upstream else "crowd")
    plan.request = _fingerprint(plan)
    if transcript.is_chore:
        plan.source = "upstream" if has_upstream else "chore"
        plan.text = transcript.chore_reply()
        return plan
    if not asked.forgotten:
        _know_again(history, plan)
        if plan.kept is None:
            _place(history, plan)
    _retrieve(history, plan)
    return plan


def _know_again(history: History, plan: Plan) -> None:
    """Give the attempt its name; if it is an earlier one again, and was answered, take that answer."""
    asked = plan.asked
    plan.attempt = plan.request if asked.idempotency_key else secrets.token_hex(16)
    if not asked.repeated and not asked.idempotency_key:
        with contextlib.suppress(PoolFull):  # a full pool can still be asked, and so can the upstream
            history.once.remember(plan.group, plan.user, plan.request, {"attempt": plan.attempt, "at": time.time()})
        return
    _take_again(history, plan)


def _take_again(history: History, plan: Plan) -> None:
    """Take the name of an earlier attempt at this request, and its answer, if it was answered."""
    known = history.once.recall(plan.group, plan.user, plan.request)
    if known is None or time.time() - known["at"] > RETRY_S:
        return
    plan.attempt = known["attempt"]
    if "kept" not in known or plan.asked.choices > 1:
        return
    kept = Kept.model_validate(known["kept"])
    try:
        message = history.messages.get(plan.group, plan.user, kept.conversation, kept.answer_id)
    except NotFound:
        return  # deleted since
    plan.kept, plan.conversation, plan.text, plan.begun = kept, kept.conversation, message.text, True
    plan.source, plan.head, plan.usage = known["source"], known["head"], known["usage"]


def _fingerprint(plan: Plan) -> str:
    """The same for the same request of the same user, and for no other."""
    asked = plan.asked
    try:
        body = as_json(asked.body, sort_keys=True)
    except ValueError as error:
        raise Trouble(BAD_REQUEST, f"The body cannot be passed on as JSON: {error}") from None
    named = (plan.group, plan.user, asked.conversation, asked.chat, asked.idempotency_key)
    return "completion/" + hashlib.sha256(orjson.dumps(named) + body).hexdigest()


def _place(history: History, plan: Plan) -> None:
    """Which conversation this is: named by the client, its chat's, the one whose transcript this continues, or a new one."""
    group, user, asked = plan.group, plan.user, plan.asked
    before = plan.transcript.before()
    if asked.conversation:
        plan.name = asked.conversation
    elif asked.chat:
        plan.name = "chat/" + hashlib.sha256(orjson.dumps((user, asked.chat))).hexdigest()
    elif before is not None:
        known = history.once.recall(group, user, f"transcript/{before}")
        # Not one that has been deleted since.
        with contextlib.suppress(NotFound):
            plan.name = history.conversations.get(group, user, known["conversation"]).id if known else ""
    plan.name = plan.name or f"completion/{plan.attempt}"
    plan.conversation = history.conversations.id_for(group, plan.name)
    try:
        history.conversations.get(group, user, plan.conversation)
    except NotFound:
        if plan.name == plan.conversation:  # an id of ours, and not of this group: it cannot be made
            raise
        return  # made when there is something to put in it
    plan.begun = True
    _check_wheel(history, plan)


def _check_wheel(history: History, plan: Plan) -> None:
    """Raise if somebody else drives, before the upstream is asked. The token is checked again when the reply is stored."""
    lease = history.conversations.lease(plan.group, plan.user, plan.conversation)
    token = plan.asked.lease_token
    if lease is None or (lease.holder == plan.user and lease.token == token):
        return
    if token is None:
        raise LeaseHeld(
            f"{lease.holder} has the wheel of this conversation until {lease.until:%H:%M:%S} UTC",
            operation="completion",
            hint="Wait until then, or fork the conversation; who has the wheel gives the lease's token",
        )
    raise LeaseLost(
        f"{lease.holder} has taken the wheel of this conversation since",
        operation="completion",
        hint="Read what was written meanwhile, and take the wheel again",
    )


def _retrieve(history: History, plan: Plan) -> None:
    """What the crowd knows; and if no upstream is to be asked, the reply made of it."""
    question = plan.transcript.question[:SEARCHED_CHARACTERS_MAX]
    if question:
        where = plan.conversation if plan.begun else None
        found = history.ask(plan.group, question, ANSWERS_MAX, user=plan.user, conversation=where)
        own = plan.kept.answer_id if plan.kept else None
        plan.answers = [one for one in found if one.answer_id != own]
    if plan.kept is not None:
        return
    if plan.source == "upstream":
        if plan.asked.body.get("tools") or plan.asked.body.get("response_format") or plan.asked.choices > 1:
            return  # what is wanted is more than an answer
        direct = history.direct_answer(plan.group, question, plan.answers) if plan.answers else None
        if direct is not None:
            plan.source, plan.direct, plan.text = "crowd", True, prompt.as_reply([direct])
            return
        return
    plan.source = "crowd" if plan.answers else "nobody"
    plan.text = prompt.as_reply(plan.answers)


def forwarded(plan: Plan, model: str) -> dict[str, Any]:
    """The body for the upstream: the client's, with the crowd's answers as data in the user's message."""
    said = {text_of(one.get("content")).strip() for one in plan.transcript.messages}
    data = prompt.as_data([one for one in plan.answers if one.answer.strip() not in said])
    messages = plan.transcript.with_data(data) if data else plan.transcript.messages
    return plan.asked.body | {"model": model, "messages": messages}


# ---------------------------------------------------------------------- after the reply (blocking)


def keep(history: History, plan: Plan, text: str, head: Mapping[str, Any], usage: Any = None) -> str:
    """Store the question and its reply; returns the reply as stored (an earlier attempt's, if that was first)."""
    group, user = plan.group, plan.user
    plan.conversation = history.conversations.create(group, user, id=plan.name).id
    by_model = plan.source == "upstream"
    question = NewMessage(role="user", text=plan.transcript.question, parts=plan.transcript.parts)
    crowd = by_model and head.get("finish_reason") != "content_filter"
    answer = NewMessage(role="assistant", text=text, model=head.get("model") if by_model else shapes.MODEL, crowd=crowd)
    try:
        stored = history.messages.append(
            group, user, plan.conversation, [question, answer], plan.asked.lease_token, idempotency_key=plan.attempt
        )
    except Conflict:
        # Another attempt at the same request was answered meanwhile, in the model's other words: those count.
        for _ in range(NOTED_TRIES):
            _take_again(history, plan)
            if plan.kept is not None:
                return plan.text
            time.sleep(NOTED_PAUSE_S)
        raise
    if len(stored) < 2:  # an earlier attempt's, of which somebody has deleted the one or the other since
        raise NotFound("this exchange was deleted", operation="completion", hint="Ask anew to have it stored again")
    plan.kept = Kept(conversation=plan.conversation, question_id=stored[0].id, answer_id=stored[1].id)
    known = {"attempt": plan.attempt, "at": time.time(), "kept": plan.kept.model_dump(), "source": plan.source}
    history.once.remember(group, user, plan.request, known | {"head": dict(head), "usage": usage})
    where = {"conversation": plan.conversation}
    history.once.remember(group, user, f"transcript/{plan.transcript.after(text)}", where)
    return text


# ---------------------------------------------------------------------- the reply


class Completions:
    """Replies to planned requests. `work` runs what blocks; `upstream` is None where only the crowd answers."""

    def __init__(self, history: History, work: Work, upstream: Upstream | None) -> None:
        self._history = history
        self._work = work
        self._upstream = upstream

    async def whole(self, plan: Plan) -> dict[str, Any]:
        """The reply in one piece. Raises `UpstreamError`."""
        if plan.source != "upstream" or plan.kept is not None:
            head = _own_head() | plan.head
            text = await self._kept(plan, plan.text, head)
            return self._with_crowd(shapes.completion(text, head, plan.usage), plan)
        assert self._upstream is not None
        reply = await self._upstream.complete(forwarded(plan, await self._model(plan)))
        choice: dict[str, Any] = next((one for one in reply.get("choices") or () if one.get("index", 0) == 0), {})
        message = choice.get("message") or {}
        text = text_of(message.get("content"))
        stored = await self._kept(plan, text, _head_of(reply, choice), reply.get("usage"))
        if stored != text:
            message["content"] = stored
        return self._with_crowd(reply, plan)

    async def streamed(self, plan: Plan) -> AsyncGenerator[bytes, None]:
        """The reply as server-sent events. Raises `UpstreamError` before the first; later failures are events themselves."""
        if plan.source == "upstream" and plan.kept is None:
            async with aclosing(self._passed_on(plan)) as events:
                async for one in events:
                    yield one
            return
        head = _own_head() | plan.head
        for chunk in shapes.chunks(plan.text, head):
            yield shapes.event(chunk)
        await self._kept(plan, plan.text, head)
        yield shapes.event(self._with_crowd(shapes.last_chunk(head), plan))
        if plan.asked.wants_usage:
            yield shapes.event(shapes.usage_chunk(head, plan.usage))
        yield shapes.DONE

    async def _passed_on(self, plan: Plan) -> AsyncGenerator[bytes, None]:
        """The upstream's chunks as they come; from the first that ends it they wait until the exchange is stored."""
        assert self._upstream is not None
        body = forwarded(plan, await self._model(plan))
        gathered = _Gathered(plan.asked.choices)
        begun = False
        try:
            async with self._upstream.stream(body) as chunks:
                async for chunk in chunks:
                    if not gathered.ends_with(chunk):
                        yield shapes.event(chunk)
                        begun = True
        except UpstreamError as error:
            if not begun:
                raise
            yield shapes.event(error.body)  # the client's SDK raises it
            return
        await self._kept(plan, gathered.text, gathered.head, gathered.usage)
        *held, last = gathered.held or [shapes.last_chunk(gathered.head)]
        for chunk in held:
            yield shapes.event(chunk)
        yield shapes.event(self._with_crowd(last, plan))
        yield shapes.DONE

    async def _model(self, plan: Plan) -> str:
        assert self._upstream is not None
        named = plan.asked.body.get("model") or shapes.MODEL
        return await self._upstream.model_default() if named == shapes.MODEL else str(named)

    async def _kept(self, plan: Plan, text: str, head: Mapping[str, Any], usage: Any = None) -> str:
        """Store the exchange unless it is stored already, or nothing was asked or said; returns the reply as stored."""
        asked = plan.transcript.question or plan.transcript.parts
        answered = text.strip() and head.get("finish_reason") not in _UNFINISHED
        wanted = asked and answered and not plan.transcript.is_chore and not plan.asked.forgotten
        if plan.kept is not None or not wanted:
            return text
        try:
            return await self._patiently(keep, self._history, plan, text, head, usage)
        except (SharedRagError, Overloaded) as error:
            _log.warning("a reply was given that could not be stored: %s", error)
            return text

    async def _patiently(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`job` off the event loop. The reply is there: it is worth waiting for a place."""
        until = time.monotonic() + KEEP_PATIENCE_S
        while True:
            try:
                return await self._work.run(job, *args, **kwargs)
            except Overloaded:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(0.1)

    @staticmethod
    def _with_crowd(reply: dict[str, Any], plan: Plan) -> dict[str, Any]:
        """The reply with what the crowd knows beside it."""
        ids = {} if plan.kept is None else {"question_id": plan.kept.question_id, "answer_id": plan.kept.answer_id}
        crowd = Crowd(
            source=plan.source,
            conversation=plan.conversation or None,
            stored=plan.kept is not None,
            direct=plan.direct,
            answers=plan.answers,
            **ids,
        )
        return reply | {"sharedrag": crowd.model_dump(mode="json")}


class _Gathered:
    """What a stream has said so far in its first choice, and the chunks that are held back at its end."""

    def __init__(self, choices: int) -> None:
        self.text = ""
        self.head: dict[str, Any] = {}
        self.usage: Any = None
        self.held: list[dict[str, Any]] = []
        self._open = choices

    def ends_with(self, chunk: dict[str, Any]) -> bool:
        """Take a chunk in. True if it is held back: all choices have finished."""
        for choice in chunk.get("choices") or ():
            finish = choice.get("finish_reason")
            self._open -= bool(finish)
            if choice.get("index", 0) == 0:
                self.text += text_of((choice.get("delta") or {}).get("content"))
                self.head = _head_of(chunk, choice)
        self.usage = chunk.get("usage") or self.usage
        if self._open <= 0:
            self.held.append(chunk)
        return self._open <= 0


def _own_head() -> dict[str, Any]:
    return {"id": shapes.new_completion_id(), "created": int(time.time())}


def _head_of(reply: Mapping[str, Any], choice: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": reply.get("id"),
        "created": reply.get("created"),
        "model": reply.get("model"),
        "finish_reason": choice.get("finish_reason") or "stop",
    }
