"""Bulk loading: messages that were written long ago, elsewhere, by many people in many conversations.

`Messages.append` is one member's next turn: it looks up the member, the conversation and who has the wheel, pairs the turn
with what stands before it, and takes the conversation's lock. Here all that is told: each message comes with its author, its
time, its conversation and the message that it answers, and a batch is two puts: the exchanges, then, all in one step, the
messages with the conversations and members that are new.

Every id follows from the group, the source and the source's own name for the thing. What is there already is left as it is,
so loading twice is loading once, and what was broken off is taken up.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from sharedrag.collection import Record
from sharedrag.embed import Vectors
from sharedrag.history import pairing
from sharedrag.history.errors import InvalidRequest
from sharedrag.history.messages import TEXT_LENGTH_MAX, exchange_fields, turn_of
from sharedrag.history.models import Role
from sharedrag.history.records import Store, check_text, check_unicode, check_user, digest, exchange_id, invalid, member_id

BATCH_MAX = 10_000


@dataclass(frozen=True, slots=True)
class PastMessage:
    """A message as its source has it; `name` and `conversation` are the source's own names, `created` is aware."""

    name: str
    conversation: str
    user: str
    role: Role
    text: str
    created: datetime
    answers: str | None = None  # the name of the message that it answers
    model: str | None = None
    crowd: bool = True
    conversation_metadata: dict[str, Any] = field(default_factory=dict)  # of a conversation that begins with it


class Loaded(NamedTuple):
    """What became of a batch; `embedded` texts took `embedding_s` seconds of it."""

    messages: int
    exchanges: int
    already_there: int
    embedded: int
    embedding_s: float


class Bulk:
    """`history.bulk`: what an administrator does; who may call is the caller's to check."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def load(self, group: str, source: str, messages: Sequence[PastMessage]) -> Loaded:
        """Add past messages to a group, at most `BATCH_MAX`, in this order; their authors become members.

        `source` says where the names are from: the same name in another source is another message. A message may answer
        one of an earlier batch. Conversations are told apart from the group's own; nobody's wheel is asked for.
        Raises `NotFound`, `InvalidRequest`, before anything is written.
        """
        _check(source, messages)
        self._store.group(group)
        named = _Names(group, source)
        batch = {named.message(one.name): one for one in messages}
        there = self._there(list(batch))
        fresh = {name: one for name, one in batch.items() if name not in there}
        pairs = self._pairs(named, fresh)
        started = time.perf_counter()
        vectors, embedded = self._embedded(pairs)
        seconds = time.perf_counter() - started
        if fresh:
            # A group that is being deleted waits for whoever holds this lock, and is gone for whoever comes after.
            with self._store.changing(group):
                self._store.group(group)
                self._put(named, fresh, pairs, vectors)
        return Loaded(len(fresh), len(pairs), len(messages) - len(fresh), embedded, seconds)

    def _there(self, ids: list[str]) -> set[str]:
        return {one.id for one in self._store.records.get(ids) if one is not None}

    def _pairs(self, named: _Names, fresh: dict[str, PastMessage]) -> list[pairing.Pair]:
        """The exchanges that these messages complete: with messages of this batch, or of one before it."""
        turns = {
            name: pairing.Turn(name, named.conversation(one.conversation), one.user, one.role, one.text, None, one.crowd)
            for name, one in fresh.items()
        }
        asked = {name: named.message(one.answers) for name, one in fresh.items() if one.answers is not None}
        earlier = list({one for one in asked.values() if one not in turns})
        known = {**turns, **{one.id: turn_of(one) for one in self._store.records.get(earlier) if one is not None}}
        found = []
        for name, question_name in asked.items():
            question, answer = known.get(question_name), turns[name]
            if question is not None and question.counts and answer.counts and question is not answer:
                found.append(pairing.Pair(question, answer))
        return found

    def _embedded(self, pairs: list[pairing.Pair]) -> tuple[Vectors | None, int]:
        """(exchanges, dimension) float32, and how many texts that took: what was asked once is embedded once."""
        if self._store.embedder is None or not pairs:
            return None, 0
        texts = [pair.question.text for pair in pairs]
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        vectors = self._store.embedder.embed_texts(list(places))
        return np.asarray(vectors)[[places[text] for text in texts]], len(places)

    def _put(self, named: _Names, fresh: dict[str, PastMessage], pairs: list[pairing.Pair], vectors: Vectors | None) -> None:
        fields = {name: named.fields(one, self._store.node) for name, one in fresh.items()}
        for pair in pairs:
            fields[pair.answer.id]["answers"] = pair.question.id
        if pairs:
            self._store.exchanges.put(
                [exchange_id(pair.answer.id) for pair in pairs],
                vectors,
                [f"{pair.question.text}\n\n{pair.answer.text}" for pair in pairs],
                [exchange_fields(named.group, pair, fields[pair.answer.id]) for pair in pairs],
                created=[fresh[pair.answer.id].created for pair in pairs],
            )
        records = [*self._members(named, fresh), *self._conversations(named, fresh)]
        records += [Record(name, one.text, fields[name], one.created) for name, one in fresh.items()]
        self._store.records.put(
            [one.id for one in records],
            texts=[one.text for one in records],
            metadata=[one.metadata for one in records],
            created=[one.created for one in records],
        )

    def _members(self, named: _Names, fresh: dict[str, PastMessage]) -> list[Record]:
        """Records that make those authors members who are none yet, since their first message."""
        first = {member_id(named.group, one.user): one for one in reversed(fresh.values())}
        there = self._there(list(first))
        return [
            Record(name, None, {"kind": "member", "group": named.group, "user": one.user, "role": "member"}, one.created)
            for name, one in first.items()
            if name not in there
        ]

    def _conversations(self, named: _Names, fresh: dict[str, PastMessage]) -> list[Record]:
        """Records of the conversations that are not there yet."""
        first = {named.conversation(one.conversation): one for one in reversed(fresh.values())}
        there = self._there(list(first))
        found = []
        for name, one in first.items():
            if name not in there:
                metadata = {**one.conversation_metadata, "source": named.source, "name": one.conversation}
                fields = {"kind": "conversation", "group": named.group, "user": one.user, "metadata": metadata}
                found.append(Record(name, None, fields, one.created))
        return found


class _Names:
    """Ids of what a source calls by its own names, in one group."""

    def __init__(self, group: str, source: str) -> None:
        self.group, self.source = group, source
        self._conversations: dict[str, str] = {}

    def message(self, name: str) -> str:
        return "msg_" + digest("past", self.group, self.source, name)

    def conversation(self, name: str) -> str:
        known = self._conversations.get(name)
        if known is None:
            known = self._conversations[name] = "conv_" + digest("past", self.group, self.source, name)
        return known

    def fields(self, one: PastMessage, node: str) -> dict[str, Any]:
        """A message's metadata, as `Messages.append` would have it."""
        fields: dict[str, Any] = {
            "kind": "message",
            "group": self.group,
            "conversation": self.conversation(one.conversation),
            "user": one.user,
            "role": one.role,
            "node": node,
        }
        if one.model is not None:
            fields["model"] = one.model
        if not one.crowd:
            fields["crowd"] = False
        return fields


def _check(source: str, messages: Sequence[PastMessage]) -> None:
    check_text(source, "the source", 256)
    if not 0 < len(messages) <= BATCH_MAX:
        raise invalid(f"{len(messages):,} messages", f"Load 1 to {BATCH_MAX:,} at a time")
    for one in messages:
        check_user(one.user)
        check_text(one.text, f"message {one.name!r:.80}", TEXT_LENGTH_MAX)
        check_unicode(one.name + one.conversation + (one.answers or ""), f"a name in message {one.name!a:.80}")
        if one.created.tzinfo is None:
            raise InvalidRequest(
                f"message {one.name!r:.80} has a time without a zone", operation="load", hint="Give aware datetimes"
            )
