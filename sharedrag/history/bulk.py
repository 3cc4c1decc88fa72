"""Bulk loading: messages that were written long ago, elsewhere, by many people in many conversations.

`Messages.append` is one member's next turn: it looks up the member, the conversation and who has the wheel, pairs the turn
with what stands before it, and takes the conversation's lock. Here all that is told: each message comes with its author, its
time, its conversation and the message that it answers, and a batch is two puts: the exchanges, then, all in one step, the
messages with the conversations and members that are new.

Every id follows from the group, the source and the source's own name for the thing. What is there already is left as it is,
so loading twice is loading once, and what was broken off is taken up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple

from sharedrag.collection import Record
from sharedrag.embed import Vectors
from sharedrag.history import context, pairing
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
    leans_on: context.Previous | None = None  # what the question that it answers leans on
    conversation_metadata: dict[str, Any] = field(default_factory=dict)  # of a conversation that begins with it


class Loaded(NamedTuple):
    """What became of a batch."""

    messages: int
    exchanges: int
    already_there: int


@dataclass(frozen=True, slots=True)
class Draft:
    """A batch as it will be written: by id the messages that are new, and the exchanges that they complete."""

    names: _Names
    fresh: dict[str, PastMessage]
    turns: dict[str, pairing.Turn]
    pairs: list[pairing.Pair]
    already_there: int

    @property
    def texts(self) -> int:
        """How many texts are embedded for it."""
        return 2 * len(self.pairs)


class Bulk:
    """`history.bulk`: what an administrator does; who may call is the caller's to check.

    `load` is `draft`, `embed` and `put`. Who calls these may embed one batch while the next is drafted.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def load(self, group: str, source: str, messages: Sequence[PastMessage]) -> Loaded:
        """Add past messages to a group, at most `BATCH_MAX`, in this order; their authors become members.

        `source` says where the names are from: the same name in another source is another message. A message may answer
        one of an earlier batch. Conversations are told apart from the group's own; nobody's wheel is asked for.
        Raises `NotFound`, `InvalidRequest`, before anything is written.
        """
        draft = self.draft(group, source, messages)
        return self.put(draft, self.embed(draft))

    def draft(self, group: str, source: str, messages: Sequence[PastMessage], after: Draft | None = None) -> Draft:
        """What is new of these messages, `after` a batch that is not written yet. Raises `NotFound`, `InvalidRequest`."""
        _check(source, messages)
        self._store.group(group)
        names = _Names(group, source)
        waiting = after.turns if after is not None else {}
        batch = {names.message(one.name): one for one in messages}
        there = self._there([name for name in batch if name not in waiting]).union(waiting)
        fresh = {name: one for name, one in batch.items() if name not in there}
        turns = {name: names.turn(name, one) for name, one in fresh.items()}
        pairs = self._pairs(names, fresh, turns, waiting)
        return Draft(names, fresh, turns, pairs, len(messages) - len(fresh))

    def _there(self, ids: list[str]) -> set[str]:
        return {one.id for one in self._store.records.get(ids) if one is not None}

    def _pairs(
        self,
        names: _Names,
        fresh: dict[str, PastMessage],
        turns: dict[str, pairing.Turn],
        waiting: dict[str, pairing.Turn],
    ) -> list[pairing.Pair]:
        """The exchanges that these messages complete: with messages of this batch, or of one before it."""
        asked = {name: names.message(one.answers) for name, one in fresh.items() if one.answers is not None}
        earlier = list({one for one in asked.values() if one not in turns and one not in waiting})
        stored = {one.id: turn_of(one) for one in self._store.records.get(earlier) if one is not None}
        found = []
        for name, question_name in asked.items():
            question = turns.get(question_name) or waiting.get(question_name) or stored.get(question_name)
            answer = turns[name]
            if question is not None and question.counts and answer.counts and question is not answer:
                found.append(pairing.Pair(question, answer))
        return found

    def embed(self, draft: Draft) -> Vectors | None:
        """(exchanges, dimension) float32; None where there is nothing to embed, or no embedder."""
        if self._store.embedder is None or not draft.pairs:
            return None
        exchanges = [(one.question.text, one.answer.text, draft.fresh[one.answer.id].leans_on) for one in draft.pairs]
        return context.exchange_vectors(self._store.embedder, exchanges)

    def put(self, draft: Draft, vectors: Vectors | None) -> Loaded:
        """Write a batch: its exchanges, then its messages in one step. Raises `NotFound` where the group went meanwhile."""
        if draft.fresh:
            # A group that is being deleted waits for whoever holds this lock, and is gone for whoever comes after.
            with self._store.changing(draft.names.group):
                self._store.group(draft.names.group)
                if there := self._there(list(draft.fresh)):  # somebody else loads the same
                    draft, vectors = _without(draft, vectors, there)
                self._write(draft, vectors)
        return Loaded(len(draft.fresh), len(draft.pairs), draft.already_there)

    def _write(self, draft: Draft, vectors: Vectors | None) -> None:
        named, fresh, pairs = draft.names, draft.fresh, draft.pairs
        fields = {name: named.fields(one, self._store.node) for name, one in fresh.items()}
        for pair in pairs:
            fields[pair.answer.id]["answers"] = pair.question.id
        if not fresh:
            return
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


def _without(draft: Draft, vectors: Vectors | None, there: set[str]) -> tuple[Draft, Vectors | None]:
    """A draft without the messages that are there by now, and its vectors."""
    kept = [number for number, pair in enumerate(draft.pairs) if pair.answer.id not in there]
    smaller = replace(
        draft,
        fresh={name: one for name, one in draft.fresh.items() if name not in there},
        pairs=[draft.pairs[number] for number in kept],
        already_there=draft.already_there + len(there),
    )
    return smaller, None if vectors is None or not kept else vectors[kept]


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

    def turn(self, name: str, one: PastMessage) -> pairing.Turn:
        """A message as pairing looks at it; `name` is its id."""
        return pairing.Turn(name, self.conversation(one.conversation), one.user, one.role, one.text, None, one.crowd)

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
