"""What members say about a message: votes, confirmations, comments, corrections, flags; and what a moderator decides.

One record each, named after the message and the member, so that two members never write the same one and nobody has to
read, change and write back a tally. What a message's marks come to (`Standing`) is a fold over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from sharedrag.collection import Record
from sharedrag.filters import And, Where
from sharedrag.history.errors import Conflict
from sharedrag.history.models import Comment, Policy, Standing, new_id
from sharedrag.history.records import (
    MARKS,
    Access,
    Store,
    check_text,
    comment_of,
    group_of,
    invalid,
    mark_id,
    not_allowed,
    not_found,
    now_utc,
    of_kind,
)

TEXT_LENGTH_MAX = 32_768
REASON_LENGTH_MAX = 1024
_CHAIN_MAX = 64


class Marks:
    """`history.marks`. `user` is who calls and must be a member; messages are named by their ids, in any conversation."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @contextmanager
    def _at(self, group: str, user: str | None, message: str) -> Iterator[tuple[Access, Record]]:
        """Who calls and the message, which stays while inside. Raises `NotFound`."""
        _, (found,) = self._store.access(group, user, message)
        conversation: str = self._store.owned(found, group, "message").metadata["conversation"]
        with self._store.changing(conversation):
            access, (found,) = self._store.access(group, user, message)
            yield access, self._store.owned(found, group, "message")

    def _mark(self, kind: str, message: Record, user: str, **fields: Any) -> None:
        held = message.metadata
        metadata = {"kind": kind, "group": held["group"], "message": message.id, "user": user, "about": held["user"]}
        self._store.records.put(
            [mark_id(kind, message.id, user)], metadata=[{**metadata, **fields, "node": self._store.node}]
        )

    def _unmark(self, kind: str, message: Record, user: str) -> None:
        mark = mark_id(kind, message.id, user)
        if mark in self._store.records:
            self._store.vanish(message.metadata["group"], kind, [mark], message=message.id, user=user)

    # ------------------------------------------------------------------ members

    def vote(self, group: str, user: str, message: str, value: int) -> None:
        """Vote a message up (1) or down (-1), or take the vote back (0); a member's newest vote counts.

        Raises `NotFound`, `InvalidRequest`, and `NotAllowed` for one's own message.
        """
        if type(value) is not int or value not in (1, -1, 0):
            raise invalid(f"a vote of {value!r}", "Give 1, -1, or 0 to take it back")
        with self._at(group, user, message) as (_, found):
            if found.metadata["user"] == user:
                raise not_allowed("a vote on one's own message", "Others vote on it")
            if value:
                self._mark("vote", found, user, value=value)
            else:
                self._unmark("vote", found, user)

    def confirm(self, group: str, user: str, message: str) -> None:
        """Say that a message is still true, as of now. Raises `NotFound`."""
        with self._at(group, user, message) as (_, found):
            self._mark("confirm", found, user)

    def unconfirm(self, group: str, user: str, message: str) -> None:
        """Take one's confirmation back, if there is one. Raises `NotFound`."""
        with self._at(group, user, message) as (_, found):
            self._unmark("confirm", found, user)

    def flag(self, group: str, user: str, message: str, reason: str = "") -> None:
        """Flag a message for the moderators; a member's newest flag counts. Raises `NotFound`, `InvalidRequest`."""
        check_text(reason or "-", "the reason", REASON_LENGTH_MAX)
        with self._at(group, user, message) as (_, found):
            self._mark("flag", found, user, reason=reason)

    def unflag(self, group: str, user: str, message: str) -> None:
        """Take one's flag back, if there is one. Raises `NotFound`."""
        with self._at(group, user, message) as (_, found):
            self._unmark("flag", found, user)

    def comment(self, group: str, user: str, message: str, text: str) -> Comment:
        """Remark on a message. Raises `NotFound`, `InvalidRequest`."""
        check_text(text, "a comment", TEXT_LENGTH_MAX)
        with self._at(group, user, message) as (_, found):
            fields = {
                "kind": "comment",
                "group": group,
                "conversation": found.metadata["conversation"],
                "message": message,
                "user": user,
                "node": self._store.node,
            }
            record = Record(new_id("cmt"), text, fields, now_utc())
            self._store.records.put([record.id], texts=[text], metadata=[fields], created=record.created)
        return comment_of(record)

    def comments(self, group: str, user: str | None, message: str) -> list[Comment]:
        """The remarks on a message, the oldest first. Raises `NotFound`."""
        _, (found,) = self._store.access(group, user, message)
        self._store.owned(found, group, "message")
        return [comment_of(one) for one in self._store.records.find(of_kind("comment", message=message))]

    def delete_comment(self, group: str, user: str | None, comment: str, message: str | None = None) -> None:
        """Take a remark (on this message) away; for its author and for moderators. Raises `NotFound`, `NotAllowed`."""
        access, (found,) = self._store.access(group, user, comment)
        record = self._store.owned(found, group, "comment")
        if message not in (None, record.metadata["message"]):
            raise not_found("comment")
        if access.user != record.metadata["user"] and not access.moderates:
            raise not_allowed("only its author may delete a comment", "Ask a moderator of the group")
        self._store.vanish(group, "comment", [comment], message=record.metadata["message"])

    # ------------------------------------------------------------------ corrections

    def supersede(self, group: str, user: str | None, old: str, new: str) -> None:
        """Say that `new` takes the place of `old`; for the authors of either and for moderators. It can be taken back.

        Raises `NotFound`, `NotAllowed`; `Conflict` where `new` is itself, in the end, superseded by `old`.
        """
        with self._store.correcting(group), self._at(group, user, old) as (access, found):
            (other,) = self._store.get(new)
            successor = self._store.owned(other, group, "message")
            authors = (found.metadata["user"], successor.metadata["user"])
            if access.user not in authors and not access.moderates:
                raise not_allowed("only the authors of the two messages may say so", "Comment on it, or ask a moderator")
            if self._leads_to(new, old):
                raise Conflict(
                    "the one is superseded by the other already", operation="supersede", hint="Take that back first"
                )
            fields = {"kind": "supersede", "group": group, "message": old, "by": new, "user": user, "node": self._store.node}
            self._store.records.put([_supersede_id(old)], metadata=[fields])

    def _leads_to(self, message: str, goal: str) -> bool:
        for _ in range(_CHAIN_MAX):
            if message == goal:
                return True
            (found,) = self._store.get(_supersede_id(message))
            if found is None:
                return False
            message = found.metadata["by"]
        return True

    def unsupersede(self, group: str, user: str | None, old: str) -> None:
        """Take that back; for the same members. Raises `NotFound`, `NotAllowed`."""
        with self._at(group, user, old) as (access, found):
            (mark,) = self._store.get(_supersede_id(old))
            if mark is None:
                return
            (successor,) = self._store.get(mark.metadata["by"])
            authors = {found.metadata["user"], mark.metadata["user"]}
            if successor is not None:
                authors.add(successor.metadata["user"])
            if access.user not in authors and not access.moderates:
                raise not_allowed("only the authors of the two messages may say so", "Ask a moderator")
            self._store.vanish(group, "supersede", [mark.id], message=old)

    # ------------------------------------------------------------------ moderators

    def moderate(self, group: str, moderator: str | None, message: str, state: Literal["hidden", "visible"]) -> None:
        """Hide a message from answers, or show it whatever its flags; for moderators.

        Raises `NotFound`, `NotAllowed`, `InvalidRequest`.
        """
        if state not in ("hidden", "visible"):
            raise invalid(f"state {state!r}", 'Give "hidden" or "visible"')
        with self._at(group, moderator, message) as (access, found):
            if not access.moderates:
                raise not_allowed("only moderators decide that", "Flag the message instead")
            fields = {"kind": "moderation", "group": group, "message": message, "state": state, "user": moderator}
            fields |= {"about": found.metadata["user"], "node": self._store.node}
            self._store.records.put([f"moderation/{message}"], metadata=[fields])

    def standing(self, group: str, user: str | None, message: str) -> Standing:
        """What the members made of a message so far. Raises `NotFound`."""
        _, (found, group_record) = self._store.access(group, user, message, group)
        self._store.owned(found, group, "message")
        if group_record is None:
            raise not_found("group")
        marks = self._store.records.find(And(Where("message", "==", message), Where("kind", "in", list(MARKS))))
        return fold(marks, group_of(group_record).policy)


def fold(marks: Iterable[Record], policy: Policy) -> Standing:
    """The standing that the marks on one message come to."""
    counts = dict.fromkeys((*MARKS, "up", "down"), 0)
    confirmed = superseded_by = decided = None
    for one in marks:
        kind = one.metadata["kind"]
        counts[kind] += 1
        if kind == "vote":
            counts["up" if one.metadata["value"] > 0 else "down"] += 1
        elif kind == "confirm":
            confirmed = one.created if confirmed is None else max(confirmed, one.created)
        elif kind == "supersede":
            superseded_by = one.metadata["by"]
        elif kind == "moderation":
            decided = one.metadata["state"]
    return Standing(
        up=counts["up"],
        down=counts["down"],
        confirmed=confirmed,
        comments=counts["comment"],
        superseded_by=superseded_by,
        flags=counts["flag"],
        moderation=decided or ("flagged" if counts["flag"] >= policy.flags_to_hide else "visible"),
    )


def _supersede_id(old: str) -> str:
    return f"supersede/{old}"
