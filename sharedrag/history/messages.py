"""Messages: appended, read, searched, deleted.

An append is two puts: first the exchanges that the new messages complete, then the messages themselves, all in one batch.
An exchange counts only while its question and its answer live, so that second put is what commits both: killed in between,
nothing is seen. With an idempotency key all ids follow from the key, and trying again completes it.

Vectors are made before the conversation's lock is taken. Who may write, who has the wheel and whether it was written
already is looked up under it.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import orjson

from sharedrag.collection import Record
from sharedrag.filters import And, Created, Filter
from sharedrag.history import context, pairing
from sharedrag.history.conversations import Conversations, Stretch, check_append, shows, stretches_of
from sharedrag.history.errors import Conflict
from sharedrag.history.models import Message, NewMessage, new_id
from sharedrag.history.once import once_fields, once_id
from sharedrag.history.records import (
    Access,
    Store,
    check_limit,
    check_order,
    check_text,
    check_unicode,
    digest,
    exchange_id,
    in_utc,
    invalid,
    lease_id,
    message_of,
    microseconds,
    not_allowed,
    not_found,
    now_utc,
    of_kind,
)

TEXT_LENGTH_MAX = 1_000_000
BATCH_MAX = 1000
_EARLIER_MAX = 24  # messages before an append that are looked through for what it answers
_KEY_LENGTH_MAX = 512
_WORDS_LENGTH_MAX = 10_000


class _Draft(NamedTuple):
    """An append as it will be written; all lists have one item a message, or one an exchange."""

    ids: list[str]
    texts: list[str]
    fields: list[dict[str, Any]]
    created: list[datetime]
    pairs: list[pairing.Pair]
    turns: list[pairing.Turn]  # what was said: before, if that was looked at, and now


class Messages:
    """`history.messages`. `user` is who calls and must be a member; None reads as administrator."""

    def __init__(self, store: Store, conversations: Conversations) -> None:
        self._store = store
        self._conversations = conversations

    # ------------------------------------------------------------------ writing

    def append(
        self,
        group: str,
        user: str,
        conversation: str,
        messages: Sequence[NewMessage],
        lease_token: int | None = None,
        idempotency_key: str | None = None,
        *,
        vectors: Any = None,
    ) -> builtins.list[Message]:
        """Add messages at the end of a conversation, all in one step, and pair questions with answers (see `pairing`).

        With an `idempotency_key`, what was written under it for this user and conversation is returned instead of written
        again; other messages under the same key are a `Conflict`. `vectors` are those of the exchanges that this append
        completes, (exchanges, dimension) float32 or (dimension,) for one; by default they are made here, as `context` says.
        Raises `NotFound`, `InvalidRequest`, `LeaseHeld`, `LeaseLost`.
        """
        messages = _check(messages)
        if idempotency_key is not None:
            check_text(idempotency_key, "the idempotency key", _KEY_LENGTH_MAX)
        _, record = self._conversations.record(group, user, conversation)
        note = None if idempotency_key is None else once_id(group, user, f"append {conversation} {idempotency_key}")
        content = digest([one.model_dump(exclude={"created"}) for one in messages]) if note else ""
        if note is not None and (known := self._written(note, content)) is not None:
            return known
        draft = self._draft(user, record, messages, note, leaning=vectors is None and self._store.embedder is not None)
        embedded = self._embedded(draft) if vectors is None else _as_vectors(vectors, draft)
        with self._store.changing(conversation):
            self._check_still(group, user, conversation, lease_token, draft)
            if note is not None and (known := self._written(note, content)) is not None:
                return known
            self._put(group, user, draft, embedded, note, content)
        return [message_of(Record(*one)) for one in zip(draft.ids, draft.texts, draft.fields, draft.created, strict=True)]

    def _draft(
        self, user: str, conversation: Record, messages: Sequence[NewMessage], note: str | None, *, leaning: bool
    ) -> _Draft:
        """Ids, fields and pairs. What a message answers is judged by what is there now.

        `leaning`: what was said before is wanted too where a question leans on it.
        """
        now = now_utc()
        ids = [new_id("msg") if note is None else "msg_" + digest(note, number) for number in range(len(messages))]
        new = [
            pairing.Turn(name, conversation.id, user, one.role, one.text, one.answers, one.crowd)
            for name, one in zip(ids, messages, strict=True)
        ]
        stretches = stretches_of(conversation)
        named = self._named(stretches, [one.answers for one in messages if one.answers is not None])
        earlier = None
        if pairing.needs_earlier(new):
            earlier = self._earlier(stretches)
        found = pairing.pairs(earlier or (), new, named)
        if earlier is None and leaning and any(context.is_follow_up(pair.question.text) for pair in found):
            earlier = self._earlier(stretches)
        answers = {pair.answer.id: pair.question.id for pair in found}
        fields = [
            self._fields(conversation, user, one, answers.get(name, one.answers))
            for name, one in zip(ids, messages, strict=True)
        ]
        created = [now if one.created is None else in_utc(one.created) for one in messages]
        return _Draft(ids, [one.text for one in messages], fields, created, found, [*(earlier or ()), *new])

    def _fields(self, conversation: Record, user: str, message: NewMessage, answers: str | None) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "kind": "message",
            "group": conversation.metadata["group"],
            "conversation": conversation.id,
            "user": user,
            "role": message.role,
            "node": self._store.node,
        }
        if message.model is not None:
            fields["model"] = message.model
        if message.parts is not None:
            fields["parts"] = orjson.dumps(message.parts).decode()
        if answers is not None:
            fields["answers"] = answers
        if not message.crowd:
            fields["crowd"] = False
        return fields

    def _named(self, stretches: builtins.list[Stretch], ids: builtins.list[str]) -> dict[str, pairing.Turn]:
        """The messages of these ids; `NotFound` unless the conversation shows them all."""
        found = {}
        if ids:
            records = self._store.get(*ids)
            keys = self._store.records.order_keys(ids)
            for name, record, key in zip(ids, records, keys, strict=True):
                if record is None or key is None or not shows(stretches, record, key):
                    raise not_found(f"message that is answered: {name!r:.80}")
                found[name] = turn_of(record)
        return found

    def _earlier(self, stretches: builtins.list[Stretch]) -> builtins.list[pairing.Turn]:
        records, _ = self._page(stretches, _EARLIER_MAX, None, newest_first=True)
        return [turn_of(one) for one in reversed(records)]

    def _embedded(self, draft: _Draft) -> Any:
        """The vectors of the exchanges, each with what its question leans on; None without an embedder."""
        embedder = self._store.embedder
        if embedder is None or not draft.pairs:
            return None
        places = {turn.id: place for place, turn in enumerate(draft.turns)}
        replies = {pair.answer.id for pair in draft.pairs}
        exchanges = []
        for question, answer in draft.pairs:
            # What only repeats the crowd makes no exchange, but it says what the talk is about.
            before = [turn for turn in draft.turns[: places.get(question.id, 0)] if turn.role in ("user", "assistant")]
            said = (
                context.Turn(one.role == "assistant" or one.answers is not None or one.id in replies, one.text)
                for one in reversed(before)
            )
            exchanges.append((question.text, answer.text, context.previous(question.text, said)))
        return context.exchange_vectors(embedder, exchanges)

    def _check_still(self, group: str, user: str, conversation: str, lease_token: int | None, draft: _Draft) -> None:
        """Raise unless this may be written now. REQUIRES: the conversation's lock."""
        mine = set(draft.ids)
        questions = [pair.question.id for pair in draft.pairs if pair.question.id not in mine]
        _, (found, lease, *asked) = self._store.access(group, user, conversation, lease_id(conversation), *questions)
        self._store.owned(found, group, "conversation")
        check_append(lease, user, lease_token, microseconds(now_utc()))
        if any(one is None for one in asked):
            raise Conflict("the question was deleted meanwhile", operation="append", hint="Read the conversation, try again")

    def _written(self, note: str, content: str) -> builtins.list[Message] | None:
        """What was written under an idempotency key, None if nothing was."""
        (found,) = self._store.get(note)
        if found is None:
            return None
        known = found.metadata["value"]
        if known["content"] != content:
            raise Conflict(
                "other messages were written under this idempotency key", operation="append", hint="Use another key"
            )
        return [message_of(one) for one in self._store.get(*known["messages"]) if one is not None]

    def _put(self, group: str, user: str, draft: _Draft, vectors: Any, note: str | None, content: str) -> None:
        if draft.pairs:
            place = {name: number for number, name in enumerate(draft.ids)}
            answers = [place[pair.answer.id] for pair in draft.pairs]
            self._store.exchanges.put(
                [exchange_id(pair.answer.id) for pair in draft.pairs],
                vectors,
                [f"{pair.question.text}\n\n{pair.answer.text}" for pair in draft.pairs],
                [exchange_fields(group, pair, draft.fields[at]) for pair, at in zip(draft.pairs, answers, strict=True)],
                created=[draft.created[at] for at in answers],
            )
        ids, texts, fields, created = (
            list(draft.ids),
            builtins.list[str | None](draft.texts),
            list(draft.fields),
            list(draft.created),
        )
        if note is not None:
            ids.append(note)
            texts.append(None)
            fields.append(once_fields(group, user, {"content": content, "messages": draft.ids}))
            created.append(now_utc())
        self._store.records.put(ids, texts=texts, metadata=fields, created=created)

    def delete(self, group: str, user: str | None, conversation: str, id: str) -> None:
        """Take a message away, with its exchanges and all that was said of it; for its author and for moderators.

        Raises `NotFound`, `NotAllowed`.
        """
        _, message = self.record(group, user, conversation, id)
        with self._store.changing(message.metadata["conversation"]):
            access, (found,) = self._store.access(group, user, id)
            found = self._store.owned(found, group, "message")
            if access.user != found.metadata["user"] and not access.moderates:
                raise not_allowed("only its author may delete a message", "Ask a moderator of the group, or flag it")
            self._store.delete_messages(group, [id])

    # ------------------------------------------------------------------ reading

    def record(self, group: str, user: str | None, conversation: str | None, id: str) -> tuple[Access, Record]:
        """Who calls, and a message's record, if the conversation (None: any of the group) shows it. Raises `NotFound`."""
        if conversation is None:
            access, (found,) = self._store.access(group, user, id)
            return access, self._store.owned(found, group, "message")
        access, (found, shown_in) = self._store.access(group, user, id, conversation)
        record = self._store.owned(found, group, "message")
        stretches = stretches_of(self._store.owned(shown_in, group, "conversation"))
        (key,) = self._store.records.order_keys([id])
        if key is None or not shows(stretches, record, key):
            raise not_found("message")
        return access, record

    def get(self, group: str, user: str | None, conversation: str | None, id: str) -> Message:
        """A message that the conversation shows (None: whichever conversation). Raises `NotFound`."""
        return message_of(self.record(group, user, conversation, id)[1])

    def list(
        self,
        group: str,
        user: str | None,
        conversation: str,
        limit: int = 20,
        after: str | None = None,
        order: str = "desc",
    ) -> tuple[builtins.list[Message], bool]:
        """A page of what a conversation shows, with what it was forked from, and whether there is more.

        `after` is the id of the last message of the page before. Raises `NotFound`, `InvalidRequest`.
        """
        check_limit(limit)
        newest_first = check_order(order)
        _, record = self._conversations.record(group, user, conversation)
        stretches = stretches_of(record)
        after_key = None
        if after is not None:
            (found,) = self._store.get(after)
            (after_key,) = self._store.records.order_keys([after])
            if found is None or after_key is None or not shows(stretches, found, after_key):
                raise not_found("message")
            stretches = _beyond(stretches, found.metadata["conversation"], newest_first)
        records, more = self._page(stretches, limit, after_key, newest_first)
        return [message_of(one) for one in records], more

    def _page(
        self, stretches: builtins.list[Stretch], limit: int, after: int | None, newest_first: bool
    ) -> tuple[builtins.list[Record], bool]:
        """At most `limit` messages of these stretches beyond an order key in the first, and whether there are more."""
        found: builtins.list[Record] = []
        for number, one in enumerate(reversed(stretches) if newest_first else stretches):
            from_key, until = None, one.until
            if number == 0 and after is not None:
                if newest_first:
                    until = after - 1
                else:
                    from_key = after
            found += self._store.records.find(
                of_kind("message", conversation=one.conversation),
                limit + 1 - len(found),
                newest_first,
                after=from_key,
                until=until,
            )
            if len(found) > limit:
                return found[:limit], True
        return found, False

    def recent(self, group: str, user: str | None, since: datetime | None = None, limit: int = 50) -> builtins.list[Message]:
        """The group's newest messages, the newest first, written after `since`. Raises `NotFound`, `InvalidRequest`."""
        check_limit(limit)
        self._store.access(group, user)
        wanted: Filter = of_kind("message", group=group)
        if since is not None:
            wanted = And(wanted, Created(">", since))
        return [message_of(one) for one in self._store.records.find(wanted, limit, newest_first=True)]

    def search(self, group: str, user: str | None, words: str, k: int = 10) -> builtins.list[tuple[Message, float]]:
        """The group's messages that say most of these words, best first, each with its score by BM25.

        Raises `NotFound`, `InvalidRequest`.
        """
        check_text(words, "what to search for", _WORDS_LENGTH_MAX)
        check_limit(k)
        self._store.access(group, user)
        hits = self._store.records.search(text=words, k=k, filter=of_kind("message", group=group))
        return [(message_of(Record(hit.id, hit.text, hit.metadata, hit.created)), hit.score) for hit in hits]


def _as_vectors(vectors: Any, draft: _Draft) -> Any:
    given = np.asarray(vectors)
    if given.ndim == 1:
        given = given.reshape(1, -1)
    if len(given) != len(draft.pairs):
        what = f"{len(given)} vectors for {len(draft.pairs)} exchanges"
        raise invalid(what, "Give one for each answer, in the order of the messages")
    return given


def _check(messages: object) -> list[NewMessage]:
    if not isinstance(messages, Sequence) or not all(type(one) is NewMessage for one in messages):
        raise invalid("messages are not a list of NewMessage", "Give [NewMessage(...), ...]")
    if not 1 <= len(messages) <= BATCH_MAX:
        raise invalid(f"{len(messages)} messages", f"Append 1 to {BATCH_MAX} at a time")
    for one in messages:
        if len(one.text) > TEXT_LENGTH_MAX:
            raise invalid(f"a message has {len(one.text):,} characters", f"At most {TEXT_LENGTH_MAX:,} fit")
        check_unicode(one.text, "a message")
        check_unicode(one.model or "", "a model's name")
        try:
            orjson.dumps(one.parts)
        except TypeError as error:
            raise invalid(f"a message's parts are not JSON: {error}", "Use strings, numbers, lists and objects") from None
    return list(messages)


def turn_of(record: Record) -> pairing.Turn:
    """A message's record as pairing looks at it."""
    held = record.metadata
    return pairing.Turn(
        record.id,
        held["conversation"],
        held["user"],
        held["role"],
        record.text or "",
        held.get("answers"),
        held.get("crowd", True),
    )


def exchange_fields(group: str, pair: pairing.Pair, answer: dict[str, Any]) -> dict[str, Any]:
    """An exchange's metadata; `answer` is that of the message that answers."""
    fields = {
        "kind": "exchange",
        "group": group,
        "conversation": pair.answer.conversation,
        "question_id": pair.question.id,
        "answer_id": pair.answer.id,
        "asked_by": pair.question.user,
        "author": pair.answer.user,
        "role": pair.answer.role,
        "cut": len(pair.question.text),
    }
    return fields | {key: answer[key] for key in ("model", "node") if key in answer}


def _beyond(stretches: list[Stretch], conversation: str, newest_first: bool) -> list[Stretch]:
    """The stretches from the one of `conversation` on, in the direction of reading."""
    at = next(number for number, one in enumerate(stretches) if one.conversation == conversation)
    return stretches[: at + 1] if newest_first else stretches[at:]
