from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import pytest

from sharedrag import Pool
from sharedrag.history import History, NewMessage, NotFound
from sharedrag.history.users import ERASED_USER
from tests.crash.helpers import until
from tests.crash.launcher import Launcher
from tests.history.helpers import RemoteHistory, WordsEmbedder, asked

SECRET = "xylophone"


def live(history: History, group: str) -> dict[str, str]:
    """Bob talks with everybody about his xylophone; returns the ids of what he wrote by what it is."""
    ids = {}
    own = history.conversations.create(group, "bob", {"title": f"my {SECRET}"}).id
    ids["conversation"] = own
    ids["question"], ids["answer"] = (
        one.id
        for one in history.messages.append(group, "bob", own, asked(f"Where do I tune my {SECRET}?", f"In {SECRET} street."))
    )
    shared = history.conversations.create(group, "ann").id
    (question,) = history.messages.append(group, "ann", shared, [NewMessage(text="Who plays an instrument?")])
    (ids["reply"],) = (
        one.id for one in history.messages.append(group, "bob", shared, [NewMessage(text=f"I play the {SECRET}.")])
    )
    joint = history.conversations.create(group, "bob").id
    history.messages.append(group, "bob", joint, [NewMessage(text=f"Who else likes a {SECRET}?")], idempotency_key="k")
    history.messages.append(group, "cid", joint, [NewMessage(text="I do, since forever.")])
    ids["joint"] = joint
    theirs = history.messages.append(group, "ann", shared, asked("Where is the beach?", "West."))[1].id
    ids["theirs"] = theirs
    history.marks.vote(group, "bob", theirs, 1)
    history.marks.vote(group, "cid", theirs, 1)
    history.marks.confirm(group, "bob", theirs)
    history.marks.flag(group, "bob", theirs, f"no {SECRET}")
    history.marks.vote(group, "ann", ids["answer"], 1)
    history.marks.flag(group, "cid", ids["reply"], "noise")
    history.marks.supersede(group, "bob", ids["answer"], ids["reply"])
    ids["comment"] = history.marks.comment(group, "bob", theirs, f"Is there a {SECRET}?").id
    ids["remark"] = history.marks.comment(group, "ann", ids["reply"], f"Your {SECRET} again").id
    history.marks.unflag(group, "bob", question.id)
    history.marks.vote(group, "bob", question.id, 1)
    history.marks.vote(group, "bob", question.id, 0)
    history.conversations.take(group, "bob", shared)
    history.once.remember(group, "bob", "transcript", {"text": SECRET})
    ids["key"] = history.keys.create("bob", group)[0]
    return ids


def everything(history: History) -> str:
    """All records of both collections as text."""
    return "\n".join(map(str, [*history.store.records.find(), *history.store.exchanges.find()]))


def check_gone(history: History, group: str, ids: dict[str, str]) -> None:
    """No trace of bob by id, words or vector, or in any record."""
    for kind in ("question", "answer", "reply"):
        with pytest.raises(NotFound):
            history.messages.get(group, "ann", None, ids[kind])
    assert history.messages.search(group, "ann", SECRET, k=50) == []
    assert history.store.records.search(text=SECRET) == [] and history.store.exchanges.search(text=SECRET) == []
    query = WordsEmbedder().embed_query(f"Where do I tune my {SECRET}?")
    assert all(SECRET not in (hit.text or "") for hit in history.store.exchanges.search(query, k=50, exact=True))
    assert history.keys.resolve(ids["key"]) is None
    found = everything(history)
    assert SECRET not in found and "bob" not in found
    assert "bob" not in str(history.events(group)[0]) and SECRET not in str(history.events(group)[0])


def test_an_erased_user_is_found_nowhere(history: History, group: str, remote: RemoteHistory) -> None:
    """Searched for afterwards from another process: by id, by words, by vector, in every record and in the events."""
    ids = live(history, group)
    counts = history.users.erase("bob")
    assert counts["messages"] == 4 and counts["memberships"] == counts["keys"] == 1
    assert counts["exchanges"] == 3, "bob's own, that with his reply, and that of his question"
    assert (counts["votes"], counts["comments"], counts["confirmations"], counts["flags"]) == (1, 1, 1, 1)
    check_gone(history, group, ids)
    for kind in ("question", "answer", "reply"):
        with pytest.raises(NotFound):
            remote.call("messages.get", group, "ann", None, ids[kind])
    assert remote.call("messages.search", group, "ann", SECRET) == []
    query = WordsEmbedder().embed_query(f"Where do I tune my {SECRET}?")
    assert all(SECRET not in hit.text for hit in remote.call("store.exchanges.search", query, 50))
    assert remote.call("keys.resolve", ids["key"]) is None
    assert "bob" not in str(remote.call("users.export", "bob")["messages"])
    assert sum(history.users.erase("bob").values()) == 0, "a second time there is nothing left"


def test_others_keep_what_is_theirs(history: History, group: str) -> None:
    """Their messages, votes and conversations stay; a conversation that others wrote in loses its owner's name."""
    ids = live(history, group)
    history.users.erase("bob")
    assert [one.text for one in history.messages.recent(group, "ann")] == [
        "West.",
        "Where is the beach?",
        "I do, since forever.",
        "Who plays an instrument?",
    ]
    assert history.marks.standing(group, "ann", ids["theirs"]).up == 1
    joint = history.conversations.get(group, "ann", ids["joint"])
    assert joint.user == ERASED_USER and joint.metadata == {}
    with pytest.raises(NotFound):
        history.conversations.get(group, "ann", ids["conversation"])
    assert [one.user for one in history.groups.members(group)] == ["ann", "cid"]


def test_a_user_is_erased_from_one_group_alone(history: History, group: str) -> None:
    """Elsewhere they go on as before."""
    other = history.groups.create("Alps", owner="bob").id
    ids, kept = live(history, group), history.conversations.create(other, "bob").id
    key, _ = history.keys.create("bob", other)
    _, answer = history.messages.append(other, "bob", kept, asked("Where is the hut?", "Up there."))
    history.users.erase("bob", group)
    with pytest.raises(NotFound):
        history.messages.get(group, "ann", None, ids["reply"])
    assert history.messages.get(other, "bob", kept, answer.id) == answer
    assert history.keys.resolve(key) is not None and len(history.store.exchanges.find({"group": other})) == 1
    history.users.erase("bob")
    assert "bob" not in everything(history)


def test_a_moderators_decisions_stay_without_a_name(history: History, group: str) -> None:
    """What was hidden stays hidden."""
    conversation = history.conversations.create(group, "cid").id
    _, answer = history.messages.append(group, "cid", conversation, asked("a?", "b"))
    history.groups.add_member(group, "bob", "moderator")
    history.marks.moderate(group, "bob", answer.id, "hidden")
    history.users.erase("bob")
    assert history.marks.standing(group, "ann", answer.id).moderation == "hidden"
    assert "bob" not in everything(history)


def test_an_export_has_everything(history: History, group: str) -> None:
    """As JSON: what they wrote, said of others, are members of; but no key."""
    ids = live(history, group)
    found = history.users.export("bob")
    assert found == json.loads(json.dumps(found))
    assert {one["id"] for one in found["messages"]} >= {ids["question"], ids["answer"], ids["reply"]}
    assert found["messages"][0]["text"] == f"Where do I tune my {SECRET}?"
    assert [one["value"] for one in found["votes"]] == [1] and len(found["comments"]) == len(found["flags"]) == 1
    assert [one["group"] for one in found["members"]] == [group]
    assert {one["id"] for one in found["conversations"]} == {ids["conversation"], ids["joint"]}
    assert {one.get("answer") for one in found["exchanges"]} >= {f"I play the {SECRET}."}
    assert "Who plays an instrument?" not in str(found), "another's question is not theirs to take along"
    assert ids["key"] not in str(found) and len(found["keys"]) == 1
    assert history.users.export("bob", "grp_none")["messages"] == []
    assert history.users.export("nobody")["messages"] == []


def test_nothing_of_an_erased_user_slips_in(history: History, group: str, launcher: Launcher) -> None:
    """Bob writes and votes from two processes while he is erased: nothing of his is left then, and nothing comes later."""
    theirs = history.conversations.create(group, "ann").id
    target = history.messages.append(group, "ann", theirs, asked("Where is the beach?", "West."))[1].id
    remotes = [RemoteHistory(launcher, history.pool.path) for _ in range(2)]
    stopped = []

    def write(remote: RemoteHistory) -> None:
        for number in range(10_000):
            try:
                remote.call("messages.append", group, "bob", theirs, asked(f"{SECRET} {number}?", "Hm."))
                remote.call("marks.vote", group, "bob", target, 1 if number % 2 else -1)
                remote.call("marks.comment", group, "bob", target, SECRET)
            except NotFound:
                stopped.append(number)
                return

    threads = [threading.Thread(target=write, args=(remote,)) for remote in remotes]
    for thread in threads:
        thread.start()
    until(lambda: len(history.messages.recent(group, "ann")) > 20, "bob writes")
    history.users.erase("bob")
    found = everything(history)
    for thread in threads:
        thread.join()
    assert SECRET not in found and "bob" not in found
    assert everything(history) == found
    assert len(stopped) == 2


@pytest.mark.parametrize("method", ["marks.vote", "marks.comment", "messages.append"])
def test_who_was_about_to_answer_an_erased_user_leaves_nothing_of_theirs(
    history: History, group: str, launcher: Launcher, method: str
) -> None:
    """Cid has looked up bob's question and is stopped before he writes what he makes of it; meanwhile bob is erased."""
    conversation = history.conversations.create(group, "ann").id
    (question,) = history.messages.append(group, "bob", conversation, [NewMessage(text=f"Who tunes a {SECRET}?")])
    says: dict[str, tuple[object, ...]] = {
        "marks.vote": (question.id, 1),
        "marks.comment": (question.id, "I would like to know too"),
        "messages.append": (conversation, [NewMessage(role="assistant", text="Cid does.", answers=question.id)]),
    }
    eraser = RemoteHistory(launcher, history.pool.path, fault="put.intent:stop:2")
    eraser.begin("users.erase", "bob")
    eraser.worker.wait_stopped()  # he is no member any more, his message is still there
    slow = RemoteHistory(launcher, history.pool.path, fault="put.intent:stop")
    slow.begin(method, group, "cid", *says[method])
    slow.worker.wait_stopped()
    eraser.worker.signal(signal.SIGCONT)
    assert not eraser.worker.conn.poll(1.0), "it waits for whoever was let in"
    slow.worker.signal(signal.SIGCONT)
    slow.finish()
    eraser.finish()
    assert "bob" not in everything(history) and SECRET not in everything(history)
    assert history.store.records.find({"message": question.id}) == []


def test_whoever_was_let_in_is_waited_for(history: History, group: str, launcher: Launcher) -> None:
    """Bob begins a conversation, forks one, makes a key, and is stopped before it is written: he is erased with it."""
    theirs = history.conversations.create(group, "ann").id
    history.messages.append(group, "ann", theirs, asked("Where is the beach?", "West."))
    for call in (
        ("conversations.create", group, "bob"),
        ("conversations.fork", group, "bob", theirs),
        ("keys.create", "bob", group),
    ):
        history.groups.add_member(group, "bob")
        slow = RemoteHistory(launcher, history.pool.path, fault="put.intent:stop")
        slow.begin(*call)
        slow.worker.wait_stopped()
        eraser = RemoteHistory(launcher, history.pool.path)
        eraser.begin("users.erase", "bob")
        assert not eraser.worker.conn.poll(1.0), "it waits for whoever was let in"
        slow.worker.signal(signal.SIGCONT)
        slow.finish()
        eraser.finish()
        assert "bob" not in everything(history), call[0]


@pytest.mark.slow
def test_the_memory_of_an_erased_user_comes_back(pool_path: str, launcher: Launcher) -> None:
    """After maintenance their words are nowhere in the pool's file, also where living processes have them in segments
    that they still fill, and the memory is free again; what others wrote beside them stays.
    """
    with Pool.open(pool_path, create=True, capacity="256 MiB", maintenance=False) as pool:
        history = History(pool, embedder=WordsEmbedder())
        group = history.groups.create("Hawaii", owner="ann").id
        history.groups.add_member(group, "bob")
        talk = history.conversations.create(group, "ann").id
        history.messages.append(group, "ann", talk, asked("Where is the beach?", "West."))
        other = RemoteHistory(launcher, pool_path)
        for number in range(60):
            conversation = history.conversations.create(group, "bob").id
            for part in range(10):
                new = asked(f"Where do I tune {SECRET} {number}/{part}?", f"In {SECRET} street. " + "la " * 400)
                history.messages.append(group, "bob", conversation, new)
                other.call("messages.append", group, "bob", conversation, new)
                history.messages.append(group, "ann", talk, asked("And then?", "Home. " + "la " * 400))
        before = pool.info().reserved
        history.users.erase("bob")

        def forgotten() -> bool:
            pool.move_pins_on()
            pool.maintain()
            return SECRET.encode() not in Path(pool_path).read_bytes()

        until(forgotten, "the words are gone from the file")
        assert pool.info().reserved < before
        assert len(history.messages.recent(group, "ann", limit=1000)) == 1000
        assert pool.verify().ok
