"""How a history lies in the pool: which records there are, what they are called, and what stands in each.

Two collections. `{name}.exchanges` holds the exchanges with their vectors; `{name}` everything else, without vectors. Every
record's metadata has `kind` and, where it belongs to one, `group`. The table is in ARCHITECTURE.md, "A history's records".

`Store` is what the parts of a history share: the two collections, the locks, and the one question that every call begins
with: is this user a member of this group? Nothing is remembered here that another process could change.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from sharedrag.collection import Collection, Record
from sharedrag.embed import Embedder
from sharedrag.errors import InvalidRecord
from sharedrag.filters import And, Filter, Where
from sharedrag.history.errors import InvalidRequest, NotAllowed, NotFound
from sharedrag.history.models import (
    USER_LENGTH_MAX,
    Comment,
    Conversation,
    Fork,
    Group,
    Member,
    MemberRole,
    Message,
    Policy,
)
from sharedrag.pool import Pool

LOCKS = 256
PAGE_MAX = 1000
_DELETE_BATCH = 2_000
MODERATORS = ("moderator", "owner")
#: Kinds that say something about a message, each under the metadata key "message".
MARKS = ("vote", "confirm", "supersede", "flag", "moderation", "comment")


def digest(*parts: object) -> str:
    """A name for these JSON values that nobody can turn back: 24 hexadecimal digits."""
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:24]


def member_id(group: str, user: str) -> str:
    """The record that makes a user a member. Group ids have no slash, so no two pairs share one."""
    return f"member/{group}/{user}"


def lease_id(conversation: str) -> str:
    """The record that says who has the wheel."""
    return f"lease/{conversation}"


def mark_id(kind: str, message: str, user: str) -> str:
    """A member's one vote on, confirmation of or flag at a message."""
    return f"{kind}/{message}/{user}"


def exchange_id(answer: str) -> str:
    """The exchange that a message answers in, named after the message."""
    return "exg_" + answer.removeprefix("msg_")


def of_kind(kind: str, **equal: str) -> Filter:
    """Records of a kind with these values in their metadata."""
    return And(Where("kind", "==", kind), *(Where(key, "==", value) for key, value in equal.items()))


def not_found(what: str) -> NotFound:
    """The one answer to what is not there and to what is not for this user."""
    return NotFound(f"no such {what}", operation="history", hint="Check the id, and that the user is a member of the group")


def not_allowed(what: str, hint: str) -> NotAllowed:
    """A member may not do this."""
    return NotAllowed(what, operation="history", hint=hint)


def invalid(what: str, hint: str) -> InvalidRequest:
    """A request that means nothing."""
    return InvalidRequest(what, operation="history", hint=hint)


def check_user(user: object) -> str:
    """A user id that can be stored, shown and searched for."""
    if not isinstance(user, str) or not 1 <= len(user) <= USER_LENGTH_MAX or not user.isprintable():
        raise invalid(
            f"user {user!r:.80} is no user id",
            f"Give 1 to {USER_LENGTH_MAX} printable characters, such as an e-mail address",
        )
    return user


def check_text(text: object, what: str, length_max: int) -> str:
    """A text that is not empty and can be stored."""
    if not isinstance(text, str) or not text.strip():
        raise invalid(f"{what} is empty", "Give it some text")
    if len(text) > length_max:
        raise invalid(f"{what} has {len(text):,} characters", f"At most {length_max:,} fit")
    return check_unicode(text, what)


def check_unicode(text: str, what: str) -> str:
    """A text without lone surrogates."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise invalid(f"{what} is not valid Unicode", "Remove lone surrogates") from None
    return text


def check_limit(limit: object) -> int:
    """How many a page may hold."""
    if type(limit) is not int or not 1 <= limit <= PAGE_MAX:
        raise invalid(f"limit is {limit!r}", f"Give a whole number from 1 to {PAGE_MAX}")
    return limit


def check_order(order: object) -> bool:
    """Whether the newest come first."""
    if order not in ("asc", "desc"):
        raise invalid(f"order is {order!r}", 'Give "asc" (oldest first) or "desc" (newest first)')
    return order == "desc"


def check_metadata(metadata: object) -> dict[str, Any]:
    """A conversation's metadata: a JSON object."""
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise invalid(f"metadata is a {type(metadata).__name__}", "Give a JSON object")
    try:
        return orjson.loads(orjson.dumps(metadata))  # type: ignore[no-any-return]
    except (TypeError, orjson.JSONDecodeError) as error:
        raise invalid(f"metadata is not JSON: {error}", "Use strings, numbers, booleans, null, lists and objects") from None


def now_utc() -> datetime:
    """Now."""
    return datetime.now(UTC)


def in_utc(moment: datetime) -> datetime:
    """The same moment in UTC; without a zone it is UTC already."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def microseconds(moment: datetime) -> int:
    """A moment in microseconds since 1970."""
    return round(moment.timestamp() * 1_000_000)


def _lock_of(key: str) -> int:
    return zlib.crc32(key.encode()) % LOCKS


class Access(NamedTuple):
    """Who calls: a member with a role, or nobody in particular for the administrator."""

    user: str | None
    role: MemberRole

    @property
    def moderates(self) -> bool:
        """Whether what others wrote may be taken away."""
        return self.role in MODERATORS


class Store:
    """The two collections of a history, and what all its parts need of them."""

    def __init__(self, pool: Pool, name: str, embedder: Embedder | None, node: str | None) -> None:
        """Make the collection of records where there is none; that of exchanges comes with the first use."""
        self.pool = pool
        self.name = name
        self.embedder = embedder
        self.node = node or pool.arena.label or f"node {pool.node}"
        self.records: Collection = pool.collection(name)
        self._exchanges: Collection | None = None

    @property
    def exchanges(self) -> Collection:
        """The collection of exchanges: as wide as the embedder's vectors; without an embedder, as it was made."""
        if self._exchanges is None:
            if self.embedder is None:
                self._exchanges = self.pool.collection(f"{self.name}.exchanges")
            else:
                self._exchanges = self.pool.collection(
                    f"{self.name}.exchanges", self.embedder.dimension, embedding_model=self.embedder.name
                )
        return self._exchanges

    @property
    def has_exchanges(self) -> bool:
        """Whether there is a collection of exchanges: who only looks must not make one, without knowing how wide it is."""
        return self._exchanges is not None or f"{self.name}.exchanges" in self.pool.collections()

    # ------------------------------------------------------------------ locks

    @contextmanager
    def changing(self, key: str) -> Iterator[None]:
        """Whoever changes what goes by this key, in whichever process, is alone inside."""
        # One of a few locks: a handle remembers every name that it has locked.
        with self.pool.exclusive(f"{self.name}/{_lock_of(key)}"):
            yield

    @contextmanager
    def correcting(self, group: str) -> Iterator[None]:
        """Alone in saying which message of the group supersedes which: a look along the chain, which spans conversations,
        still counts when the next link is written. Taken before any `changing`.
        """
        with self.pool.exclusive(f"{self.name}/correcting/{_lock_of(group)}"):
            yield

    def wait_for_others(self) -> None:
        """Return when every change that had begun is through: each had looked up who may do it before it took its lock."""
        for number in range(LOCKS):
            with self.pool.exclusive(f"{self.name}/{number}"):
                pass

    # ------------------------------------------------------------------ looking up

    def get(self, *ids: str) -> list[Record | None]:
        """The records of these ids, as of one moment; None for what is not there, or is no id at all."""
        try:
            return self.records.get(list(ids))
        except InvalidRecord:
            raise not_found("record") from None

    def find(self, kind: str, **equal: str) -> list[Record]:
        """All records of a kind with these values, in the order they were written."""
        return self.records.find(of_kind(kind, **equal))

    def group(self, group: str) -> Group:
        """The group of this id; `NotFound`."""
        (found,) = self.get(group)
        if found is None or found.metadata.get("kind") != "group":
            raise not_found("group")
        return group_of(found)

    def access(self, group: str, user: str | None, *ids: str) -> tuple[Access, list[Record | None]]:
        """Who calls, and these records beside, as of one moment. `NotFound` unless `user` is a member."""
        first, *others = self.get(group if user is None else member_id(group, user), *ids)
        return access_of(first, user), others

    def owned(self, record: Record | None, group: str, kind: str) -> Record:
        """The record, if it is of this kind and group; `NotFound`."""
        if record is None or record.metadata.get("kind") != kind or record.metadata.get("group") != group:
            raise not_found(kind)
        return record

    # ------------------------------------------------------------------ removing

    def marks_on(self, messages: Sequence[str]) -> list[str]:
        """The ids of all votes, comments, flags and so on at these messages."""
        found: list[str] = []
        for start in range(0, len(messages), 500):
            some = list(messages[start : start + 500])
            about = And(Where("kind", "in", list(MARKS)), Where("message", "in", some))
            by = And(Where("kind", "==", "supersede"), Where("by", "in", some))
            for wanted in (about, by):
                found += self.records.scan(wanted, columns=["id"])["id"].to_pylist()
        return list(dict.fromkeys(found))

    def exchanges_of(self, messages: Sequence[str]) -> list[str]:
        """The ids of the exchanges in which these messages ask or answer."""
        found: list[str] = []
        for start in range(0, len(messages) if self.has_exchanges else 0, 500):
            some = list(messages[start : start + 500])
            for key in ("answer_id", "question_id"):
                found += self.exchanges.scan(Where(key, "in", some), columns=["id"])["id"].to_pylist()
        return list(dict.fromkeys(found))

    def delete_messages(self, group: str, messages: Sequence[str], *, notes: bool = True) -> int:
        """Take messages away with their exchanges and marks, and leave notes of it; returns how many exchanges went.

        Exchanges first: killed in between, who tries again still finds the messages.
        """
        exchanges = 0
        for start in range(0, len(messages), _DELETE_BATCH):
            some = messages[start : start + _DELETE_BATCH]
            if ids := self.exchanges_of(some):
                exchanges += self.exchanges.delete(ids)
            marks = self.marks_on(some)
            if notes:
                self.vanish(group, "message", some, marks)
            else:
                self.records.delete([*some, *marks])
        return exchanges

    def purge(self) -> None:
        """See that the bytes of what was deleted leave the pool soon, whoever's memory they are in."""
        self.records.purge()
        if self.has_exchanges:
            self.exchanges.purge()

    def vanish(self, group: str, kind: str, ids: Sequence[str], more: Sequence[str] = (), **fields: str) -> None:
        """Delete records, and leave a note for each of `ids`: whoever follows the group's events is told by it.

        Where an id names a user, `user` must be among the `fields` of the note: it is erased with them.
        """
        metadata: dict[str, Any] = {"kind": "gone", "of": kind, "group": group, **fields}
        self.records.put(
            [f"gone/{one}" for one in ids],
            metadata=[{**metadata, "id": one} for one in ids],
            delete=list(dict.fromkeys([*ids, *more])),
        )


def access_of(record: Record | None, user: str | None) -> Access:
    """Who calls, by the member's record (or, for the administrator, the group's)."""
    kind = None if record is None else record.metadata.get("kind")
    if record is None or kind != ("group" if user is None else "member"):
        raise not_found("group")
    return Access(user, "owner" if user is None else record.metadata["role"])


# ---------------------------------------------------------------------- records as models
# What was validated when it was written is not validated again: `model_construct`.


def group_of(record: Record) -> Group:
    """A group's record."""
    policy = Policy.model_validate(record.metadata["policy"])
    return Group.model_construct(id=record.id, name=record.metadata["name"], policy=policy, created=record.created)


def member_of(record: Record) -> Member:
    """A member's record."""
    held = record.metadata
    return Member.model_construct(group=held["group"], user=held["user"], role=held["role"], since=record.created)


def conversation_of(record: Record) -> Conversation:
    """A conversation's record."""
    held = record.metadata
    fork = held.get("fork")
    return Conversation.model_construct(
        id=record.id,
        group=held["group"],
        user=held["user"],
        metadata=held["metadata"],
        fork=None if fork is None else Fork.model_construct(**fork),
        created=record.created,
        etag=digest(held["metadata"]),
    )


def message_of(record: Record) -> Message:
    """A message's record."""
    held = record.metadata
    parts = held.get("parts")
    return Message.model_construct(
        id=record.id,
        group=held["group"],
        conversation=held["conversation"],
        user=held["user"],
        role=held["role"],
        text=record.text or "",
        parts=None if parts is None else orjson.loads(parts),
        answers=held.get("answers"),
        model=held.get("model"),
        node=held.get("node"),
        created=record.created,
    )


def comment_of(record: Record) -> Comment:
    """A comment's record."""
    held = record.metadata
    return Comment.model_construct(
        id=record.id,
        group=held["group"],
        conversation=held["conversation"],
        message=held["message"],
        user=held["user"],
        text=record.text or "",
        created=record.created,
    )
