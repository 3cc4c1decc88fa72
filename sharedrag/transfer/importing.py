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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import orjson

from sharedrag.chats import Chats, Message, Pairing
from sharedrag.chats.messages import Recent, linked
from sharedrag.history import History
from sharedrag.history.bulk import PastMessage
from sharedrag.history.messages import TEXT_LENGTH_MAX
from sharedrag.history.models import USER_LENGTH_MAX
from sharedrag.transfer import layout
from sharedrag.transfer.restoring import batches

BATCH = 1024
#: Messages that are looked back at for what is replied to.
REMEMBERED = 20_000


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
    messages = _past(chats, found, told)
    started = time.perf_counter()
    while batch := list(islice(messages, BATCH)):
        loaded = history.bulk.load(group, state.source, batch)
        state.messages += loaded.messages
        state.exchanges += loaded.exchanges
        state.already_there += loaded.already_there
        state.embedded += loaded.embedded
        state.embedding_s += loaded.embedding_s
        state.seconds = time.perf_counter() - started
        state.skipped = chats.skipped
        if progress is not None:
            progress(state)
    return state


class _First:
    """Counts what the first pass lets through."""

    count = 0

    def counted(self, messages: Source) -> Iterator[Message]:
        for message in messages:
            self.count += 1
            yield message


def _past(chats: Source, found: set[str], told: _Telling) -> Iterator[PastMessage]:
    known = Recent(REMEMBERED)
    pairing = Pairing(found, known)
    for message in chats:
        question = pairing.question_of(message)
        known[message.id] = message
        if len(message.text) > TEXT_LENGTH_MAX:
            chats.skipped[f"longer than {TEXT_LENGTH_MAX:,} characters"] += 1
        elif not message.text.strip():
            chats.skipped["without text"] += 1
        else:
            yield told.past(message, question)


class _Telling:
    """Who said a message, as what, and when."""

    def __init__(self, user: str, users: Mapping[str, str], time: datetime) -> None:
        self._user, self._users, self._time = user, users, time

    def past(self, message: Message, question: Message | None) -> PastMessage:
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
            conversation_metadata={"title": title} if title else {},
        )

    def _user_of(self, author: str | None) -> str:
        user = self._users.get(author or "", author or self._user)
        shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in user)
        return shown[:USER_LENGTH_MAX]

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
