"""Chats from elsewhere into a group's history: read twice, the second time a batch at a time into `history.bulk`.

The first pass counts, and finds the conversations in which messages say what they reply to. In the second, each message is
given its author, its role and what it answers:

- An answer by nobody (an assistant's), or by a model, is a model's, on behalf of whoever asked; anybody else is a person.
- An author is the user that `users` maps the name to, or the name itself; where the source has none, `user`.
- A time that is missing or no date is the file's.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import orjson

from sharedrag.chats import Chats, Message, Pairing
from sharedrag.chats.messages import Newest, linked
from sharedrag.embed import Vectors
from sharedrag.history import History, context
from sharedrag.history.bulk import Draft, PastMessage
from sharedrag.history.context import Previous, Turn
from sharedrag.history.messages import TEXT_LENGTH_MAX
from sharedrag.history.models import USER_LENGTH_MAX
from sharedrag.transfer import layout
from sharedrag.transfer.restoring import batches

BATCH = 1024
BATCH_ANSWERS = 64
#: Messages that are looked back at for what is replied to, and for what a question leans on.
REMEMBERED = 20_000
LOOKED_BACK = 24
CONVERSATIONS = 1000  # that may be interleaved


class Source(Protocol):
    """What gives messages, as often as it is iterated: `Chats`, or an exported file of ours."""

    kind: str
    done: float
    skipped: Counter[str]

    def __iter__(self) -> Iterator[Message]: ...


@dataclass
class Imported:
    """What became of a file so far; seconds count from the first batch. `total` messages are in the file."""

    source: str
    total: int
    messages: int = 0
    exchanges: int = 0
    already_there: int = 0
    embedded: int = 0
    seconds: float = 0.0
    embedding_s: float = 0.0
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        """Messages that were dealt with, one way or another."""
        return self.messages + self.already_there

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def embedder_rate(self) -> float:
        """Texts a second that the embedder made while it was at it."""
        return self.embedded / self.embedding_s if self.embedding_s else 0.0

    @property
    def embedder_share(self) -> float:
        """How much of the time the embedder took, 0 to 1."""
        return self.embedding_s / self.seconds if self.seconds else 0.0


def import_chats(
    history: History,
    group: str,
    path: str | os.PathLike[str],
    *,
    user: str,
    users: Mapping[str, str] | None = None,
    source: str | None = None,
    progress: Callable[[Imported], None] | None = None,
) -> Imported:
    """Add a file's chats to a group. Twice is once, and an import that was broken off is taken up by the next.

    `source` is where its names are unique: by default the kind of export, or the file's name without its suffix. `progress`
    is called after each batch, with the same object. Raises `NotFound`, `UnreadableData`, `UnreadableExport`, what `put`
    raises, OSError.
    """
    place = Path(path)
    chats: Source = Chats(place) if layout.contents(place) is None else ExportedChats(place)
    first = _First()
    found = linked(first.counted(chats))
    state = Imported(source or (place.stem if chats.kind == "rows" else chats.kind), first.count)
    told = _Telling(user, users or {}, datetime.fromtimestamp(place.stat().st_mtime, UTC))
    _load(history, group, _past(chats, found, told), state, chats, progress or (lambda state: None))
    return state


def _load(
    history: History,
    group: str,
    messages: Iterator[PastMessage],
    state: Imported,
    chats: Source,
    progress: Callable[[Imported], None],
) -> None:
    """All batches: while one is embedded, the one before it is written and the next one read."""
    started = time.perf_counter()
    bulk = history.bulk

    def embedded(draft: Draft) -> tuple[Vectors | None, float]:
        began = time.perf_counter()
        return bulk.embed(draft), time.perf_counter() - began

    def written(draft: Draft, embedding: Future[tuple[Vectors | None, float]]) -> None:
        vectors, seconds = embedding.result()
        loaded = bulk.put(draft, vectors)
        state.messages += loaded.messages
        state.exchanges += loaded.exchanges
        state.already_there += loaded.already_there
        state.embedded += draft.texts if vectors is not None else 0
        state.embedding_s += seconds
        state.seconds = time.perf_counter() - started
        state.skipped = chats.skipped
        progress(state)

    embedder = ThreadPoolExecutor(1, "sharedrag-embedding")
    try:
        waiting: tuple[Draft, Future[tuple[Vectors | None, float]]] | None = None
        for batch in _batches(messages):
            draft = bulk.draft(group, state.source, batch, after=waiting[0] if waiting else None)
            before, waiting = waiting, (draft, embedder.submit(embedded, draft))
            if before is not None:
                written(*before)
        if waiting is not None:
            written(*waiting)
    finally:
        embedder.shutdown(cancel_futures=True)


def _batches(messages: Iterable[PastMessage]) -> Iterator[list[PastMessage]]:
    """So many messages at a time, or so many with answers: whoever interrupts does not wait long for the embedder."""
    batch: list[PastMessage] = []
    answers = 0
    for message in messages:
        batch.append(message)
        answers += message.answers is not None
        if len(batch) == BATCH or answers == BATCH_ANSWERS:
            yield batch
            batch, answers = [], 0
    if batch:
        yield batch


class _First:
    """Counts what the first pass lets through."""

    count = 0

    def counted(self, messages: Source) -> Iterator[Message]:
        for message in messages:
            self.count += 1
            yield message


def _past(chats: Source, found: set[str], told: _Telling) -> Iterator[PastMessage]:
    known = Newest[Message](REMEMBERED)
    pairing, leaning = Pairing(found, known), _Leaning(found, known)
    for message in chats:
        question = pairing.question_of(message)
        leaning.note(message, question)
        known[message.id] = message
        if len(message.text) > TEXT_LENGTH_MAX:
            chats.skipped[f"longer than {TEXT_LENGTH_MAX:,} characters"] += 1
        elif not message.text.strip():
            chats.skipped["without text"] += 1
        else:
            yield told.past(message, question, None if question is None else leaning.of(question))


class _Leaning:
    """What questions lean on (see `history.context`): in a chat what was said just before; in a room, where messages say
    what they reply to, only that.
    """

    def __init__(self, found: set[str], known: Newest[Message]) -> None:
        self._linked = found
        self._known = known
        self._said: Newest[deque[Turn]] = Newest(CONVERSATIONS)
        self._of: Newest[Previous] = Newest(REMEMBERED)

    def note(self, message: Message, question: Message | None) -> None:
        """The next message, and what it answers."""
        said: Iterable[Turn]
        if message.conversation in self._linked:
            replied = self._known.get(message.reply_to or "")
            said = [] if replied is None else [Turn(False, replied.text)]
        else:
            said = self._said.get(message.conversation) or deque(maxlen=LOOKED_BACK)
        if question is None and (previous := context.previous(message.text, reversed(list(said)))) is not None:
            self._of[message.id] = previous
        if isinstance(said, deque):
            said.append(Turn(question is not None or message.role == "answer", message.text[: context.PREVIOUS_LENGTH_MAX]))
            self._said[message.conversation] = said

    def of(self, question: Message) -> Previous | None:
        """What a question that was noted leans on."""
        return self._of.get(question.id)


class _Telling:
    """Who said a message, as what, and when."""

    def __init__(self, user: str, users: Mapping[str, str], time: datetime) -> None:
        self._user, self._users, self._time = user, users, time

    def past(self, message: Message, question: Message | None, leans_on: Previous | None) -> PastMessage:
        """A message as the history takes it."""
        by_model = message.role == "answer" and (message.model is not None or message.author is None)
        asker = question.author if question is not None else None
        title = message.extra.get("title")
        return PastMessage(
            name=message.id,
            conversation=message.conversation,
            user=self._user_of(asker if by_model else message.author),
            role="assistant" if by_model else "user",
            text=message.text,
            created=self._moment(message.time),
            answers=None if question is None else question.id,
            model=message.model if by_model else None,
            crowd=message.crowd,
            leans_on=leans_on,
            conversation_metadata={"title": title} if title else {},
        )

    def _user_of(self, author: str | None) -> str:
        user = self._users.get(author or "", author or self._user)[:USER_LENGTH_MAX]
        if user.isprintable():
            return user
        return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in user)

    def _moment(self, time: str | None) -> datetime:
        try:
            moment = datetime.fromisoformat(time or "")
        except ValueError:
            return self._time
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class ExportedChats:
    """The messages of a history in a file that `sharedrag export` wrote, from whichever group."""

    def __init__(self, path: Path) -> None:
        """Nothing is read yet."""
        self.path = path
        self.kind = "sharedrag"
        self.done = 0.0
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Message]:
        """Raises `UnreadableExport`."""
        self.done, self.skipped, read = 0.0, Counter(), 0
        for total, batch in batches(self.path):
            columns = (batch.column(name).to_pylist() for name in ("id", "text", "created", "metadata"))
            for name, text, created, metadata in zip(*columns, strict=True):
                held = orjson.loads(metadata) if metadata else {}
                if held.get("kind") == "message" and text and held.get("role") in ("user", "assistant"):
                    yield _message(name, text, created, held)
                elif held.get("kind") == "message":
                    self.skipped["system or tool turns"] += 1
            read += batch.num_rows
            self.done = read / max(1, total)


def _message(name: str, text: str, created: datetime, held: dict[str, Any]) -> Message:
    by_model, answers = held["role"] == "assistant", held.get("answers")
    return Message(
        id=name,
        conversation=held["conversation"],
        text=text,
        author=None if by_model else held["user"],
        role="answer" if by_model or answers else "question",
        reply_to=answers,
        time=created.isoformat(),
        model=held.get("model"),
        crowd=held.get("crowd", True),
    )
