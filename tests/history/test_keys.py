from __future__ import annotations

from pathlib import Path

import pytest

from sharedrag.history import History, InvalidRequest, NotFound
from tests.history.helpers import RemoteHistory


def test_a_key_is_what_it_was_made_for(history: History, group: str, remote: RemoteHistory) -> None:
    """Whoever has the key acts as its user in its group, in every process; the pool never has the key itself."""
    key, info = history.keys.create("bob", group, label="phone")
    assert key.startswith("sr_") and len(key) == 46
    assert remote.call("keys.resolve", key) == info
    assert (info.user, info.group, info.trusted, info.label) == ("bob", group, False, "phone")
    assert key.startswith(info.prefix) and len(info.prefix) == 8
    assert key.encode() not in Path(history.pool.path).read_bytes()


def test_a_revoked_key_counts_nowhere(history: History, group: str, remote: RemoteHistory) -> None:
    """Revoked in one process, it is unknown in the next call of another."""
    key, info = history.keys.create("bob", group)
    assert [one.id for one in history.keys.list(group)] == [info.id]
    remote.call("keys.revoke", info.id)
    assert history.keys.resolve(key) is None
    with pytest.raises(NotFound):
        history.keys.revoke(info.id)


@pytest.mark.parametrize("key", ["", "sr_", "x", "\ud800", "sr_" + "a" * 10_000])
def test_a_key_that_nobody_made_is_nobodys(history: History, key: str) -> None:
    """Whatever a client sends is looked up, and is not there."""
    assert history.keys.resolve(key) is None


def test_a_members_key_wants_the_member(history: History, group: str) -> None:
    """No key for who is not in the group, and no trusted key that is somebody's."""
    with pytest.raises(NotFound):
        history.keys.create("eve", group)
    with pytest.raises(NotFound):
        history.keys.create("eve", "grp_none")
    with pytest.raises(InvalidRequest):
        history.keys.create("bob", group, trusted=True)
    _, trusted = history.keys.create(None, group, trusted=True)
    assert trusted.trusted and trusted.user is None


def test_the_admin_key_is_made_once(history: History, remote: RemoteHistory) -> None:
    """The first who asks is shown it; no other process makes a second."""
    made = history.keys.ensure_admin().made
    assert made is not None
    assert remote.call("keys.ensure_admin") == history.keys.ensure_admin() == (None, False)
    info = remote.call("keys.resolve", made)
    assert info.user is None and info.group is None and not info.trusted


def test_the_admin_key_of_the_environment_replaces_the_one_before(history: History) -> None:
    """A changed variable is a changed key; nothing of a given key is stored in the clear."""
    assert history.keys.ensure_admin("first secret") == (None, False)
    assert history.keys.ensure_admin("first secret") == (None, False)
    known = history.keys.resolve("first secret")
    assert known is not None and known.prefix == ""
    assert history.keys.ensure_admin() == (None, False), "there is one already"
    assert history.keys.ensure_admin("second secret") == (None, True)
    assert history.keys.resolve("first secret") is None and history.keys.resolve("second secret") is not None
    assert len(history.keys.list()) == 1
    for nothing in ("", "  ", "a\nb"):
        with pytest.raises(InvalidRequest):
            history.keys.ensure_admin(nothing)
