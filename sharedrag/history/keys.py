"""API keys: what proves who calls. Only their SHA-256 is stored; 256 random bits need no slower hash."""

from __future__ import annotations

import builtins
import hashlib
import secrets
from typing import Any, NamedTuple

from sharedrag.collection import Record
from sharedrag.filters import And, Where
from sharedrag.history.models import KeyInfo
from sharedrag.history.records import Store, check_user, invalid, not_found, now_utc

_PREFIX = "sr_"
_SHOWN = 8
_LABEL_LENGTH_MAX = 256
_ADMIN = And(Where("kind", "==", "key"), Where("admin", "==", True))
_ENVIRONMENT = "from the environment"


class AdminKey(NamedTuple):
    """An administrator's key made now, to be shown this once; and whether one that was given before counts no more."""

    made: str | None
    replaced: bool


class Keys:
    """`history.keys`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(
        self, user: str | None = None, group: str | None = None, trusted: bool = False, label: str = ""
    ) -> tuple[str, KeyInfo]:
        """A new key and what it may do; the key itself is shown this once.

        `user` None: an administrator's, or, `trusted`, that of a proxy which names its users itself. `group` None: for all
        groups. A member's key wants the member: `NotFound`. Raises `InvalidRequest`.
        """
        if user is not None:
            check_user(user)
            if trusted:
                raise invalid("a trusted key of one user", "A trusted key names its users itself: leave out the user")
        if len(label) > _LABEL_LENGTH_MAX or not (label or "-").isprintable():
            raise invalid(f"label {label!r:.80}", f"Give at most {_LABEL_LENGTH_MAX} printable characters")
        key = _new_key()
        with self._store.changing(group or ""):  # who takes the member out meanwhile finds the key
            if group is not None:
                self._store.access(group, user)
            return key, self._store_key(key, user, group, trusted, label)

    def _store_key(self, key: str, user: str | None, group: str | None, trusted: bool, label: str) -> KeyInfo:
        admin = user is None and group is None and not trusted
        metadata: dict[str, Any] = {
            "kind": "key",
            "trusted": trusted,
            "label": label,
            "prefix": key[:_SHOWN] if key.startswith(_PREFIX) else "",
            "admin": admin,
        }
        metadata |= {name: value for name, value in (("user", user), ("group", group)) if value is not None}
        record = Record(_record_id(key), None, metadata, now_utc())
        self._store.records.put([record.id], metadata=[metadata], created=record.created)
        return _info(record)

    def resolve(self, key: str) -> KeyInfo | None:
        """What a key may do; None for one that is unknown or was revoked."""
        (found,) = self._store.records.get([_record_id(key)])
        return None if found is None else _info(found)

    def revoke(self, key_id: str) -> None:
        """The key no longer counts, from now on and everywhere. Raises `NotFound`."""
        if not self._store.records.delete([f"key/{key_id}"]):
            raise not_found("key")

    def list(self, group: str | None = None) -> builtins.list[KeyInfo]:
        """All keys, or those of a group, the oldest first."""
        equal = {} if group is None else {"group": group}
        return sorted((_info(one) for one in self._store.find("key", **equal)), key=lambda info: info.created)

    def ensure_admin(self, key: str | None = None) -> AdminKey:
        """See that there is an administrator's key: this one, or else any.

        A given key takes the place of the one that was given before, which no longer counts.
        """
        with self._store.changing("admin"):
            if key is None:
                if self._store.records.find(_ADMIN, limit=1):
                    return AdminKey(None, replaced=False)
                made = _new_key()
                self._store_key(made, None, None, False, "made at first start")
                return AdminKey(made, replaced=False)
            if not key.strip() or not key.isprintable():
                raise invalid("the administrator's key is empty", "Give printable characters, or none to have one made")
            before = [one for one in self._store.records.find(_ADMIN) if one.metadata["label"] == _ENVIRONMENT]
            others = [one.id for one in before if one.id != _record_id(key)]
            if len(others) == len(before):
                self._store_key(key, None, None, False, _ENVIRONMENT)
            self._store.records.delete(others)
        return AdminKey(None, replaced=bool(others))


def _new_key() -> str:
    return _PREFIX + secrets.token_urlsafe(32)


def _record_id(key: str) -> str:
    return "key/" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _info(record: Record) -> KeyInfo:
    held = record.metadata
    return KeyInfo.model_construct(
        id=record.id.removeprefix("key/"),
        user=held.get("user"),
        group=held.get("group"),
        trusted=held["trusted"],
        label=held["label"],
        prefix=held["prefix"],
        created=record.created,
    )
