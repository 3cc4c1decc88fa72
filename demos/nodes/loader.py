"""A travel group that talks through three nodes: what Ann tells node1, Bob finds on node3; then the whole group's chat.

    python -m demos.nodes.loader http://node1:8000 http://node2:8000 http://node3:8000 --through http://balancer:8000

Every question and answer is posted by its own author, through one node after the other. In the end each acknowledged message
is asked for again through `--through`. The exit code is 1 if one is missing, or if Bob did not find what Ann said.
SHAREDRAG_LOAD is how many exchanges to post (default: all of the file).
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demos.nodes.api import Nodes
from sharedrag.chats import Exchange, exchanges, load

ASKED = "Is there a ferry from Oahu to Maui?"
TOLD = "No. The Superferry stopped in 2009; between Oahu and Maui you fly, about 40 minutes."
ASKED_BY_BOB = "Can I take my car on a boat from Honolulu to Maui?"
_WRITERS = 6
_TELL_EVERY_S = 2.0
_DEFAULT_DATA = Path("/data/hawaii_chat.jsonl")


def say(text: str) -> None:
    """A line at once, also into a log."""
    print(text, flush=True)


class Group:
    """A group and its members' keys."""

    def __init__(self, nodes: Nodes, admin_key: str, name: str) -> None:
        self.nodes, self._admin_key = nodes, admin_key
        self.id = str(nodes.call(0, "POST", "/v1/groups", admin_key, {"name": name})[0]["id"])
        self._keys: dict[str, str] = {}
        self._lock = threading.Lock()

    def key(self, user: str) -> str:
        """Of a member, who joins with the first call."""
        with self._lock:
            if user not in self._keys:
                made, _ = self.nodes.call(0, "POST", f"/v1/groups/{self.id}/members", self._admin_key, {"user": user})
                self._keys[user] = str(made["key"])
            return self._keys[user]


def ann_and_bob(nodes: Nodes, group: Group) -> bool:
    """The story: told on one node, found on another."""
    last = len(nodes.urls) - 1
    ann, bob = group.key("ann"), group.key("bob")
    conversation = nodes.call(0, "POST", "/v1/conversations", ann, {})[0]["id"]
    items = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": TOLD}]
    _, told_at = nodes.call(0, "POST", f"/v1/conversations/{conversation}/items", ann, {"items": items})
    began = time.perf_counter()
    found, asked_at = nodes.call(last, "POST", "/v1/ask", bob, {"question": ASKED_BY_BOB, "k": 3})
    took_ms = (time.perf_counter() - began) * 1000
    say(f"Ann tells {nodes.name(told_at)}:  {ASKED}\n               {TOLD}")
    say(f"Bob asks {nodes.name(asked_at)}:   {ASKED_BY_BOB}")
    if not found["answers"] or found["answers"][0]["answer"] != TOLD:
        say("               and does not find it!")
        return False
    first = found["answers"][0]
    say(f"               {first['answer']}  ({first['author']}, score {first['score']:.2f}, found in {took_ms:.0f} ms)")
    return True


class Load:
    """The group's chat, posted by many at once through all nodes."""

    def __init__(self, nodes: Nodes, group: Group) -> None:
        self._nodes, self._group = nodes, group
        self._lock = threading.Lock()
        self.acknowledged: list[tuple[str, str]] = []  # conversation, message
        self.through: Counter[str] = Counter()

    def run(self, chat: list[Exchange]) -> float:
        """Post all; returns the seconds it took."""
        began = time.monotonic()
        finished = threading.Event()
        teller = threading.Thread(target=self._tell, args=(2 * len(chat), began, finished))
        teller.start()
        try:
            with ThreadPoolExecutor(_WRITERS) as writers:
                for _ in writers.map(self._post, range(len(chat)), chat):
                    pass
        finally:
            finished.set()
            teller.join()
        return time.monotonic() - began

    def _post(self, number: int, one: Exchange) -> None:
        asker, author = self._group.key(one.asker or "somebody"), self._group.key(one.author or "somebody else")
        run = self._group.id  # of a run of its own: what it sends again is what it sent
        made, _ = self._nodes.call(number, "POST", "/v1/conversations", asker, {}, once=f"{run}/{number}/c")
        path = f"/v1/conversations/{made['id']}/items"
        asked = {"items": [{"role": "user", "content": one.question}]}
        question, at = self._nodes.call(number, "POST", path, asker, asked, once=f"{run}/{number}/q")
        self._note(made["id"], question["data"][0]["id"], at)
        told = {"items": [{"role": "user", "content": one.answer, "answers": question["data"][0]["id"]}]}
        answer, at = self._nodes.call(number + 1, "POST", path, author, told, once=f"{run}/{number}/a")
        self._note(made["id"], answer["data"][0]["id"], at)

    def _note(self, conversation: str, message: str, at: int) -> None:
        with self._lock:
            self.acknowledged.append((conversation, message))
            self.through[self._nodes.name(at)] += 1

    def _tell(self, messages: int, began: float, finished: threading.Event) -> None:
        while not finished.wait(_TELL_EVERY_S):
            with self._lock:
                done, through = len(self.acknowledged), dict(sorted(self.through.items()))
            rate = done / (time.monotonic() - began)
            shares = ", ".join(f"{name} {count}" for name, count in through.items())
            say(f"loaded {done} of {messages} messages, {rate:.0f}/s; through {shares}")

    def lost(self, nodes: Nodes) -> int:
        """How many acknowledged messages these nodes do not have."""
        key = self._group.key("bob")
        wanted: dict[str, set[str]] = {}
        for conversation, message in self.acknowledged:
            wanted.setdefault(conversation, set()).add(message)

        def missing(at: int, conversation: str) -> int:
            found, _ = nodes.call(at, "GET", f"/v1/conversations/{conversation}/items?limit=100", key)
            return len(wanted[conversation] - {one["id"] for one in found["data"]})

        with ThreadPoolExecutor(_WRITERS) as readers:
            return sum(readers.map(missing, range(len(wanted)), wanted))


def _everybodys_questions(nodes: Nodes, group: Group) -> Iterator[str]:
    """One question at each node, as lines."""
    questions = (
        "When do I have to book the sunrise at Haleakala?",
        "Where can I see sea turtles?",
        "Do I need a rental car?",
    )
    for at, question in enumerate(questions[: len(nodes.urls)]):
        found, node = nodes.call(at, "POST", "/v1/ask", group.key("bob"), {"question": question, "k": 1})
        answers = found["answers"]
        said = f"{answers[0]['answer'][:90]} ({answers[0]['author']})" if answers else "nobody has answered this yet"
        yield f"{nodes.name(node)}: {question}  ->  {said}"


def main() -> int:
    """Tell the story, load, look for what was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nodes", nargs="+", metavar="URL")
    parser.add_argument("--through", metavar="URL", help="where to look for what was stored (default: each node in turn)")
    parser.add_argument("--data", type=Path, default=_DEFAULT_DATA, help="a chat, as `sharedrag import` reads it")
    chosen = parser.parse_args()
    nodes = Nodes(chosen.nodes)
    nodes.wait_until_ready()
    group = Group(nodes, os.environ["SHAREDRAG_ADMIN_KEY"], f"Travel {uuid.uuid4().hex[:6]}")
    found = ann_and_bob(nodes, group)
    chat = list(exchanges(load(chosen.data).messages))[: int(os.environ.get("SHAREDRAG_LOAD") or 0) or None]
    load_of = Load(nodes, group)
    seconds = load_of.run(chat)
    reader = Nodes([chosen.through]) if chosen.through else nodes
    lost = load_of.lost(reader)
    shares = ", ".join(f"{name} {count}" for name, count in sorted(load_of.through.items()))
    say(f"acknowledged {len(load_of.acknowledged)} messages in {seconds:.1f} s ({shares})")
    say(f"requests sent again to another node {nodes.retried}; messages lost {lost}")
    for line in _everybodys_questions(nodes, group):
        say(line)
    say("done" if found and not lost else "FAILED")
    return int(not found or bool(lost))


if __name__ == "__main__":
    sys.exit(main())
