"""Random calls in several processes against plain lists and dicts: after each, a process that did not do it sees it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from sharedrag.history import History, NewMessage, NotAllowed, NotFound
from tests.crash.launcher import Launcher
from tests.history.helpers import RemoteHistory, asked

USERS = ["ann", "bob", "cid", "dän"]
_STEPS = 120


class Model:
    """What must be seen: messages of each conversation with their authors, votes, exchanges, members."""

    def __init__(self) -> None:
        self.members = set(USERS)
        self.conversations: dict[str, list[str]] = {}
        self.begun_by: dict[str, str] = {}
        self.authors: dict[str, str] = {}
        self.votes: dict[tuple[str, str], int] = {}
        self.exchanges: dict[str, tuple[str, str]] = {}  # by answer: (question, conversation)

    def forget(self, gone: set[str]) -> None:
        """Messages went, and with them their votes and exchanges."""
        for conversation, ids in self.conversations.items():
            self.conversations[conversation] = [one for one in ids if one not in gone]
        self.authors = {one: user for one, user in self.authors.items() if one not in gone}
        self.votes = {(one, user): value for (one, user), value in self.votes.items() if one not in gone}
        self.exchanges = {
            answer: (question, where)
            for answer, (question, where) in self.exchanges.items()
            if answer not in gone and question not in gone
        }


class Run:
    """One random run."""

    def __init__(self, history: History, group: str, launcher: Launcher, seed: int) -> None:
        self.rng = random.Random(seed)
        self.group = group
        self.model = Model()
        remotes = [RemoteHistory(launcher, history.pool.path) for _ in range(2)]
        self.calls: list[Callable[..., Any]] = [self._here(history), *(one.call for one in remotes)]
        self.history = history
        self.said = 0

    @staticmethod
    def _here(history: History) -> Callable[..., Any]:
        def call(method: str, *args: Any, **kwargs: Any) -> Any:
            part, _, name = method.partition(".")
            return getattr(getattr(history, part), name)(*args, **kwargs)

        return call

    def step(self) -> None:
        """Something happens in one process; another looks."""
        doing, looking = self.rng.sample(self.calls, 2)
        user = self.rng.choice(USERS)
        weights = {self.begin: 2, self.say: 6, self.vote: 5, self.delete: 2, self.drop: 1, self.erase: 0.4, self.join: 2}
        step = self.rng.choices(list(weights), list(weights.values()))[0]
        if user not in self.model.members and step not in (self.join, self.erase):
            with pytest.raises(NotFound):
                doing("messages.recent", self.group, user)
            return
        step(doing, user)
        self.look(looking)

    def begin(self, call: Callable[..., Any], user: str) -> None:
        """A conversation begins."""
        made = call("conversations.create", self.group, user)
        self.model.conversations[made.id] = []
        self.model.begun_by[made.id] = user

    def say(self, call: Callable[..., Any], user: str) -> None:
        """Question and answer, sometimes twice under one key."""
        if not self.model.conversations:
            return
        where = self.rng.choice(list(self.model.conversations))
        new = asked(f"Where is {self.rng.random()}?", "There.") if self.rng.random() < 0.7 else [NewMessage(text="Hm.")]
        key = f"key{self.rng.random()}" if self.rng.random() < 0.5 else None
        written = call("messages.append", self.group, user, where, new, None, key)
        if key is not None:
            again = self.rng.choice(self.calls)("messages.append", self.group, user, where, new, None, key)
            assert again == written
        previous = self.model.conversations[where][-1:]
        ids = [one.id for one in written]
        self.said += len(ids)
        self.model.conversations[where] += ids
        self.model.authors |= dict.fromkeys(ids, user)
        for one in written:
            if one.answers is not None:
                assert one.answers in (ids[0], *previous)
                self.model.exchanges[one.id] = (one.answers, where)

    def vote(self, call: Callable[..., Any], user: str) -> None:
        """A vote, or one less."""
        if not self.model.authors:
            return
        message, value = self.rng.choice(list(self.model.authors)), self.rng.choice([1, -1, 0])
        if self.model.authors[message] == user:
            with pytest.raises(NotAllowed):
                call("marks.vote", self.group, user, message, value)
            return
        call("marks.vote", self.group, user, message, value)
        self.model.votes[message, user] = value

    def delete(self, call: Callable[..., Any], user: str) -> None:
        """A message goes, if it is the caller's."""
        if not self.model.authors:
            return
        message = self.rng.choice(list(self.model.authors))
        where = next(one for one, ids in self.model.conversations.items() if message in ids)
        if self.model.authors[message] != user:
            with pytest.raises(NotAllowed):
                call("messages.delete", self.group, user, where, message)
            return
        call("messages.delete", self.group, user, where, message)
        self.model.forget({message})

    def drop(self, call: Callable[..., Any], user: str) -> None:
        """A conversation goes with all its messages."""
        own = [one for one, owner in self.model.begun_by.items() if owner == user]
        if own:
            where = self.rng.choice(own)
            call("conversations.delete", self.group, user, where)
            self.model.forget(set(self.model.conversations.pop(where)))
            del self.model.begun_by[where]

    def erase(self, call: Callable[..., Any], user: str) -> None:
        """A user goes with everything."""
        call("users.erase", user)
        model = self.model
        model.members.discard(user)
        model.forget({one for one, author in model.authors.items() if author == user})
        model.votes = {key: value for key, value in model.votes.items() if key[1] != user}
        for where in [one for one, owner in model.begun_by.items() if owner == user]:
            del model.begun_by[where]
            if not model.conversations[where]:
                del model.conversations[where]

    def join(self, call: Callable[..., Any], user: str) -> None:
        """Back again, or there anyway."""
        call("groups.add_member", self.group, user)
        self.model.members.add(user)

    def look(self, call: Callable[..., Any]) -> None:
        """All is as the model has it."""
        model = self.model
        assert {one.user for one in call("groups.members", self.group)} == model.members | {"owner"}
        listed, more = call("conversations.list", self.group, "owner", 1000)
        assert not more and {one.id for one in listed} == set(model.conversations)
        for where in self.rng.sample(list(model.conversations), min(3, len(model.conversations))):
            shown, _ = call("messages.list", self.group, "owner", where, 1000, None, "asc")
            assert [one.id for one in shown] == model.conversations[where]
            assert [one.user for one in shown] == [model.authors[one.id] for one in shown]
        for message in self.rng.sample(list(model.authors), min(3, len(model.authors))):
            standing = call("marks.standing", self.group, "owner", message)
            votes = [value for (voted, _), value in model.votes.items() if voted == message]
            assert (standing.up, standing.down) == (votes.count(1), votes.count(-1))
        found = {one.metadata["answer_id"]: one.metadata for one in self.history.store.exchanges.find()}
        assert set(found) == set(model.exchanges)
        for answer, (question, where) in model.exchanges.items():
            assert (found[answer]["question_id"], found[answer]["conversation"]) == (question, where)


@pytest.mark.parametrize("seed", range(4))
def test_random_calls_of_three_processes(history: History, launcher: Launcher, seed: int) -> None:
    """Whatever they do, each sees what the others did, and nothing else; maintenance and tidying change nothing."""
    group = history.groups.create("any", owner="owner").id
    run = Run(history, group, launcher, seed)
    for user in USERS:
        history.groups.add_member(group, user)
    for number in range(_STEPS):
        run.step()
        if number % 20 == 10:
            history.pool.maintain()
            history.tidy()
    for call in run.calls:
        run.look(call)
    assert run.said > 20
