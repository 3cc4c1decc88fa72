"""Groups and their members."""

from __future__ import annotations

import builtins
from typing import get_args

from sharedrag.filters import And, Where
from sharedrag.history.models import Group, Member, MemberRole, Policy, new_id
from sharedrag.history.records import (
    Store,
    check_text,
    check_user,
    group_of,
    invalid,
    member_id,
    member_of,
    not_found,
    now_utc,
    of_kind,
)

_NAME_LENGTH_MAX = 256
_DELETE_BATCH = 5_000


class Groups:
    """`history.groups`: what an administrator does; who may call what is the caller's to check."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, name: str, policy: Policy | None = None, owner: str | None = None) -> Group:
        """A new group; `owner` becomes its first member. Raises `InvalidRequest`."""
        check_text(name, "the group's name", _NAME_LENGTH_MAX)
        group = Group(id=new_id("grp"), name=name, policy=policy or Policy(), created=now_utc())
        ids, metadata = [group.id], [_fields(group)]
        if owner is not None:
            ids.append(member_id(group.id, check_user(owner)))
            metadata.append({"kind": "member", "group": group.id, "user": owner, "role": "owner"})
        self._store.records.put(ids, metadata=metadata, created=group.created)
        return group

    def get(self, group: str) -> Group:
        """The group; `NotFound`."""
        return self._store.group(group)

    def list(self, user: str | None = None) -> builtins.list[Group]:
        """All groups, or those that `user` is a member of, the oldest first."""
        if user is None:
            found = [group_of(one) for one in self._store.find("group")]
        else:
            ids = [one.metadata["group"] for one in self._store.find("member", user=user)]
            found = [group_of(one) for one in self._store.records.get(ids) if one is not None]
        return sorted(found, key=lambda group: (group.created, group.id))

    def update(self, group: str, name: str | None = None, policy: Policy | None = None) -> Group:
        """Another name or policy. Raises `NotFound`, `InvalidRequest`."""
        if name is not None:
            check_text(name, "the group's name", _NAME_LENGTH_MAX)
        with self._store.changing(group):
            known = self._store.group(group)
            changed = Group(id=known.id, name=name or known.name, policy=policy or known.policy, created=known.created)
            self._store.records.put([group], metadata=[_fields(changed)], created=known.created)
        return changed

    def delete(self, group: str) -> None:
        """The group with everything in it, for good. Called again after a crash, it completes. Raises `NotFound`."""
        store = self._store
        self.get(group)
        for kind in ("key", "member"):  # nobody gets in any more
            store.records.delete([one.id for one in store.find(kind, group=group)])
        store.wait_for_others()
        for collection in ((store.exchanges,) if store.has_exchanges else ()) + (store.records,):
            ids = collection.scan(And(Where("group", "==", group), Where("kind", "!=", "group")), columns=["id"])["id"]
            for start in range(0, len(ids), _DELETE_BATCH):
                collection.delete(ids[start : start + _DELETE_BATCH].to_pylist())
        store.vanish(group, "group", [group])
        store.purge()

    # ------------------------------------------------------------------ members

    def add_member(self, group: str, user: str, role: MemberRole = "member") -> Member:
        """Make a user a member, or give a member another role; adding one who is there with that role changes nothing.

        Raises `NotFound`, `InvalidRequest`.
        """
        check_user(user)
        if role not in get_args(MemberRole):
            raise invalid(f"role {role!r}", f"A member is one of {', '.join(get_args(MemberRole))}")
        with self._store.changing(group):
            self._store.group(group)
            (known,) = self._store.get(member_id(group, user))
            if known is not None and known.metadata["role"] == role:
                return member_of(known)
            since = now_utc() if known is None else known.created
            metadata = {"kind": "member", "group": group, "user": user, "role": role}
            self._store.records.put([member_id(group, user)], metadata=[metadata], created=since)
        return Member(group=group, user=user, role=role, since=since)

    def remove_member(self, group: str, user: str) -> None:
        """Take a member and their keys for the group away; what they wrote stays (see `users.erase`). Raises `NotFound`."""
        with self._store.changing(group):
            self.member(group, user)
            keys = self._store.records.scan(of_kind("key", group=group, user=user), columns=["id"])["id"].to_pylist()
            self._store.vanish(group, "member", [member_id(group, user)], keys, user=user)

    def members(self, group: str) -> builtins.list[Member]:
        """The group's members, the oldest first. Raises `NotFound`."""
        self.get(group)
        found = [member_of(one) for one in self._store.find("member", group=group)]
        return sorted(found, key=lambda member: (member.since, member.user))

    def member(self, group: str, user: str) -> Member:
        """This member. Raises `NotFound`."""
        (found,) = self._store.get(member_id(group, user))
        if found is None:
            raise not_found("member")
        return member_of(found)

    def has_written(self, group: str, user: str) -> bool:
        """Whether there is a message of this user in the group, who may be a member no more."""
        return bool(self._store.records.find(of_kind("message", group=group, user=user), limit=1))


def _fields(group: Group) -> dict[str, object]:
    return {"kind": "group", "group": group.id, "name": group.name, "policy": group.policy.model_dump(exclude_defaults=True)}
