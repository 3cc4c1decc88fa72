"""Conversations: made, listed, forked, and who has the wheel.

A fork copies nothing. Its record names the stretches of other conversations that it shows, each up to an order key, and
messages never move: so a fork of a fork is a list of stretches too, found without following anything. What is deleted is
gone from every fork: a fork shows what is left.
"""

from __future__ import annotations

import builtins
from typing import Any, NamedTuple

import numpy as np

from sharedrag.collection import Record
from sharedrag.history.errors import Conflict, LeaseHeld, LeaseLost
from sharedrag.history.models import Conversation, Fork, Lease, new_id
from sharedrag.history.records import (
    Access,
    Store,
    check_limit,
    check_metadata,
    check_order,
    check_text,
    conversation_of,
    digest,
    invalid,
    lease_id,
    microseconds,
    not_allowed,
    not_found,
    now_utc,
    of_kind,
)
from sharedrag.segments.batch import moment

FORK_DEPTH_MAX = 32
LEASE_SECONDS_MAX = 3600
_NAME_LENGTH_MAX = 512


class Stretch(NamedTuple):
    """The messages of a conversation up to an order key (None: all)."""

    conversation: str
    until: int | None


def stretches_of(record: Record) -> list[Stretch]:
    """What a conversation shows, in order: what it was forked from, then its own messages."""
    inherited = [Stretch(*one) for one in record.metadata.get("stretches", ())]
    return [*inherited, Stretch(record.id, None)]


class Conversations:
    """`history.conversations`. `user` is who calls and must be a member; None calls as administrator."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def record(self, group: str, user: str | None, id: str) -> tuple[Access, Record]:
        """Who calls, and the conversation's record. Raises `NotFound`."""
        access, (found,) = self._store.access(group, user, id)
        return access, self._store.owned(found, group, "conversation")

    def create(self, group: str, user: str, metadata: dict[str, Any] | None = None, id: str | None = None) -> Conversation:
        """A new conversation, begun by `user`.

        `id` is the caller's own name for it, such as a chat client's id: the group has one conversation of that name, which
        is made the first time and returned ever after. Raises `NotFound`, `InvalidRequest`.
        """
        fields = check_metadata(metadata)
        if id is None:
            return self._new(group, user, fields)
        conversation = self.id_for(group, id)
        _, (known,) = self._store.access(group, user, conversation)
        if known is None:
            with self._store.changing(conversation):
                _, (known,) = self._store.access(group, user, conversation)
                if known is None:
                    if conversation == id:
                        raise not_found("conversation")
                    return self._put(group, user, conversation, fields)
        return conversation_of(self._store.owned(known, group, "conversation"))

    def id_for(self, group: str, name: str) -> str:
        """The id of the conversation that a client calls `name`; an id of ours is its own name."""
        check_text(name, "the conversation's name", _NAME_LENGTH_MAX)
        return name if name.startswith("conv_") else "conv_" + digest(group, name)

    def _new(self, group: str, user: str, metadata: dict[str, Any], **more: Any) -> Conversation:
        """One that has no name but its id. Raises `NotFound`."""
        name = new_id("conv")
        with self._store.changing(name):  # nobody else knows it, but an erasure waits for whoever was let in
            self._store.access(group, user)
            return self._put(group, user, name, metadata, **more)

    def _put(self, group: str, user: str, id: str, metadata: dict[str, Any], **more: Any) -> Conversation:
        fields = {"kind": "conversation", "group": group, "user": user, "metadata": metadata, **more}
        record = Record(id, None, fields, now_utc())
        self._store.records.put([id], metadata=[fields], created=record.created)
        return conversation_of(record)

    def get(self, group: str, user: str | None, id: str) -> Conversation:
        """The conversation. Raises `NotFound`."""
        return conversation_of(self.record(group, user, id)[1])

    def list(
        self, group: str, user: str | None, limit: int = 20, after: str | None = None, order: str = "desc"
    ) -> tuple[builtins.list[Conversation], bool]:
        """A page of the group's conversations by when they were begun, and whether there are more.

        `after` is the id of the last one of the page before. Raises `NotFound`, `InvalidRequest`.
        """
        check_limit(limit)
        newest_first = check_order(order)
        self._store.access(group, user)
        table = self._store.records.scan(of_kind("conversation", group=group), columns=["id", "created"])
        ids: builtins.list[str] = table["id"].to_pylist()
        by_time = np.argsort(table["created"].to_numpy(), kind="stable").tolist()
        ids = [ids[at] for at in (reversed(by_time) if newest_first else by_time)]
        if after is not None:
            if after not in ids:
                raise not_found("conversation")
            ids = ids[ids.index(after) + 1 :]
        found = self._store.records.get(ids[:limit])
        return [conversation_of(one) for one in found if one is not None], len(ids) > limit

    def update(
        self, group: str, user: str | None, id: str, metadata: dict[str, Any], if_match: str | None = None
    ) -> Conversation:
        """Other metadata, in place of what there was. Raises `NotFound`, `InvalidRequest`.

        `Conflict` where `if_match` is not the conversation's `etag` any more: somebody else was faster.
        """
        fields = check_metadata(metadata)
        with self._store.changing(id):
            _, record = self.record(group, user, id)
            if if_match is not None and conversation_of(record).etag != if_match:
                raise Conflict(
                    "the conversation was changed meanwhile", operation="update", hint="Read it again, and then change it"
                )
            changed = {**record.metadata, "metadata": fields}
            self._store.records.put([id], metadata=[changed], created=record.created)
        return conversation_of(Record(id, None, changed, record.created))

    def delete(self, group: str, user: str | None, id: str) -> None:
        """The conversation with its own messages, for who began it and for moderators.

        Forks of it stay, and no longer show what was deleted. Raises `NotFound`, `NotAllowed`.
        """
        with self._store.changing(id):
            access, record = self.record(group, user, id)
            if access.user != record.metadata["user"] and not access.moderates:
                raise not_allowed("only who began a conversation may delete it", "Ask a moderator of the group")
            messages = self._store.records.scan(of_kind("message", conversation=id), columns=["id"])["id"].to_pylist()
            self._store.delete_messages(group, messages, notes=False)
            self._store.vanish(group, "conversation", [id], [lease_id(id)])

    # ------------------------------------------------------------------ forks

    def fork(self, group: str, user: str, id: str, message: str | None = None) -> Conversation:
        """A new conversation that shows this one up to and with `message` (default: its newest), then goes its own way.

        Raises `NotFound`; `InvalidRequest` where there is nothing to fork, or forks are too deep.
        """
        _, record = self.record(group, user, id)
        stretches = stretches_of(record)
        if message is None:
            message = self._newest(stretches)
            if message is None:
                raise invalid("the conversation has no message yet", "Begin a new conversation instead")
        (found,) = self._store.get(message)
        (key,) = self._store.records.order_keys([message])
        if found is None or key is None or not shows(stretches, found, key):
            raise not_found("message")
        at = next(number for number, one in enumerate(stretches) if one.conversation == found.metadata["conversation"])
        inherited = [*stretches[:at], Stretch(stretches[at].conversation, key)]
        if len(inherited) > FORK_DEPTH_MAX:
            raise invalid(f"a fork of more than {FORK_DEPTH_MAX} conversations", "Begin a new conversation instead")
        fork = Fork(conversation=id, message=message)
        return self._new(group, user, {}, fork=fork.model_dump(), stretches=[list(one) for one in inherited])

    def _newest(self, stretches: builtins.list[Stretch]) -> str | None:
        for one in reversed(stretches):
            found = self._store.records.find(of_kind("message", conversation=one.conversation), 1, True, until=one.until)
            if found:
                return found[0].id
        return None

    # ------------------------------------------------------------------ the wheel

    def take(self, group: str, user: str, id: str, seconds: float = 60, token: int | None = None) -> Lease:
        """Take the wheel: until the lease ends, only who gives its token can append. With the token, renew it.

        Who has the wheel and takes it again without the token gets a new one; the old one counts no more. Raises
        `NotFound`, `InvalidRequest`, `LeaseHeld` while another member has it, `LeaseLost` for an old token.
        """
        if type(seconds) not in (int, float) or not 0 < seconds <= LEASE_SECONDS_MAX:
            raise invalid(f"seconds is {seconds!r}", f"Give more than 0, at most {LEASE_SECONDS_MAX}, and renew in time")
        with self._store.changing(id):
            _, (found, held) = self._store.access(group, user, id, lease_id(id))
            self._store.owned(found, group, "conversation")
            now_us = microseconds(now_utc())
            check_lease(held, user, token, now_us)
            # Never the number of an earlier lease, even of one that `tidy` has forgotten.
            newest = token if token is not None else max(now_us, 0 if held is None else held.metadata["token"] + 1)
            until_us = now_us + round(seconds * 1_000_000)
            fields = {
                "kind": "lease",
                "group": group,
                "conversation": id,
                "user": user,
                "token": newest,
                "until_us": until_us,
            }
            self._store.records.put([lease_id(id)], metadata=[fields])
        return lease_of(Record(lease_id(id), None, fields, now_utc()))

    def release(self, group: str, user: str, id: str, token: int) -> None:
        """Let go of the wheel. Raises `NotFound`, and `LeaseLost` if somebody else has taken it since."""
        with self._store.changing(id):
            _, (found, held) = self._store.access(group, user, id, lease_id(id))
            self._store.owned(found, group, "conversation")
            check_lease(held, user, token, microseconds(now_utc()))
            assert held is not None, "a token without a lease is lost"
            self._store.records.put([held.id], metadata=[{**held.metadata, "until_us": 0}])

    def lease(self, group: str, user: str | None, id: str) -> Lease | None:
        """Who has the wheel now, if anybody has. Raises `NotFound`."""
        _, (found, held) = self._store.access(group, user, id, lease_id(id))
        self._store.owned(found, group, "conversation")
        return None if held is None or not _lasts(held, microseconds(now_utc())) else lease_of(held)


def shows(stretches: list[Stretch], message: Record, key: int) -> bool:
    """Whether a conversation of these stretches shows a message, of which this is the order key."""
    conversation = message.metadata.get("conversation")
    return message.metadata.get("kind") == "message" and any(
        one.conversation == conversation and (one.until is None or key <= one.until) for one in stretches
    )


def _lasts(lease: Record, now_us: int) -> bool:
    return bool(lease.metadata["until_us"] > now_us)


def lease_of(record: Record) -> Lease:
    """A lease's record. Its token is no secret: it counts only together with its holder's key."""
    held = record.metadata
    return Lease(conversation=held["conversation"], holder=held["user"], token=held["token"], until=moment(held["until_us"]))


def check_lease(lease: Record | None, user: str | None, token: int | None, now_us: int) -> None:
    """Raise unless `user`, with this token or none, may change the conversation. REQUIRES: its lock.

    `LeaseHeld`: another has the wheel. `LeaseLost`: the
    token is not the newest.
    """
    if token is not None:
        if lease is None or lease.metadata["token"] != token or lease.metadata["user"] != user:
            raise LeaseLost(
                "this token is not the newest any more: somebody else has taken the wheel since",
                operation="lease",
                hint="Read what was written meanwhile, and take the wheel again",
            )
        return
    if lease is not None and _lasts(lease, now_us) and lease.metadata["user"] != user:
        raise lease_held(lease)


def lease_held(lease: Record) -> LeaseHeld:
    """The error that says who has the wheel and until when."""
    known = lease_of(lease)
    return LeaseHeld(
        f"{known.holder} has the wheel until {known.until:%H:%M:%S} UTC",
        operation="lease",
        hint="Wait until then, or fork the conversation",
    )


def check_append(lease: Record | None, user: str | None, token: int | None, now_us: int) -> None:
    """As `check_lease`; and while the wheel is taken, who has it must give the token too. REQUIRES: the lock."""
    check_lease(lease, user, token, now_us)
    if token is None and lease is not None and _lasts(lease, now_us):
        raise LeaseHeld(
            "you have the wheel of this conversation: give its token", operation="append", hint="Give the lease's token"
        )
