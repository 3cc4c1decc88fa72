"""A group memory in a pool: `History` and its parts. Many processes use one at once; what one writes, all find next."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sharedrag.embed import Embedder
from sharedrag.history.ask import ask
from sharedrag.history.bulk import Bulk
from sharedrag.history.conversations import Conversations
from sharedrag.history.direct import direct_answer
from sharedrag.history.events import events
from sharedrag.history.groups import Groups
from sharedrag.history.keys import Keys
from sharedrag.history.marks import Marks
from sharedrag.history.messages import Messages
from sharedrag.history.models import Answer, Event
from sharedrag.history.once import Once
from sharedrag.history.ranking import Weights
from sharedrag.history.records import Store
from sharedrag.history.standings import Standings
from sharedrag.history.tidy import tidy
from sharedrag.history.users import Users
from sharedrag.pool import Pool


class History:
    """The history of any number of groups, in the pool's collections `name` and `name.exchanges`.

    `embedder` makes the vectors of questions; without one, exchanges are stored as the collection was made, or without
    vectors, and found by words. `node` is what this process calls itself in the messages that it writes (default: the
    pool handle's name).
    """

    def __init__(
        self,
        pool: Pool,
        name: str = "history",
        embedder: Embedder | None = None,
        weights: Weights | None = None,
        *,
        node: str | None = None,
    ) -> None:
        self.pool = pool
        self.name = name
        self.embedder = embedder
        self.weights = weights or Weights()
        self.store = Store(pool, name, embedder, node)
        self.groups = Groups(self.store)
        self.keys = Keys(self.store)
        self.conversations = Conversations(self.store)
        self.messages = Messages(self.store, self.conversations)
        self.marks = Marks(self.store)
        self.standings = Standings(self.store.records)
        self.users = Users(self.store)
        self.once = Once(self.store)
        self.bulk = Bulk(self.store)

    def ask(
        self,
        group: str,
        question: str,
        k: int = 5,
        *,
        user: str | None = None,
        vector: Any = None,
        conversation: str | None = None,
        explain: bool = False,
        now: datetime | None = None,
    ) -> list[Answer]:
        """See `sharedrag.history.ask`."""
        return ask(self, group, question, k, user=user, vector=vector, conversation=conversation, explain=explain, now=now)

    def direct_answer(self, group: str, question: str, answers: list[Answer]) -> Answer | None:
        """See `sharedrag.history.direct`."""
        return direct_answer(self, group, question, answers)

    def events(self, group: str | None, place: str | None = None, limit: int | None = None) -> tuple[list[Event], str]:
        """What is new in a group (None: in all), at most `limit`, from `place` on (None: from the beginning).

        Returns the events in order, and the place to go on from, which is good in every process. Who may see them is the
        caller's to check. Raises `InvalidRecord` for a text that is no place.
        """
        return events(self.store, group, place, limit)

    def place(self) -> str:
        """Where the events stand now: from here, `events` gives what comes."""
        return self.store.records.place()

    def tidy(self, now: datetime | None = None) -> dict[str, int]:
        """Erase what groups keep no longer, and notes, leases and half-written exchanges that nobody needs any more.

        To be called once in a while, by any process: one at a time does it. Returns how many records of each kind went.
        """
        return tidy(self.store, now)
