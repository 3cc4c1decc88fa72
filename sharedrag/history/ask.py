"""From a question to what the crowd answered before: candidates by vector, ranked by what is known of them.

The candidates are the exchanges of the group whose vectors are nearest, each also compared by words. The ranking looks at
their ids, times and marks; of those that are shown, it looks whether their question and answer still exist (an exchange
counts only while they do). A superseded answer stays far below its successor, which takes its place in the candidates even
where no search would have found it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from sharedrag.collection import Hit
from sharedrag.filters import Where
from sharedrag.history import context, ranking
from sharedrag.history.models import Answer, Explanation, Group, Standing
from sharedrag.history.ranking import Reputation, Weights
from sharedrag.history.records import check_text, exchange_id, group_of, invalid, microseconds, not_found, now_utc
from sharedrag.history.standings import Tally

if TYPE_CHECKING:
    from sharedrag.history.history import History

QUESTION_LENGTH_MAX = 65_536
K_MAX = 100
_DEEPER_MAX = 128  # for more, indexes are not asked
_EARLIER_MAX = 6  # messages that are looked at for what a follow-up leans on
_CHAIN_MAX = 8  # corrections of corrections
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WORDS = re.compile(r"\w+(?:'\w+)*")
#: Two answers that differ in one of these say different things, however much else they share.
_DECISIVE = re.compile(r"\d+|no|not|never|none|nobody|without|cannot|n't|\w+n't|closed|open")


class _Candidate(NamedTuple):
    """An exchange as it was found."""

    hit: Hit
    similarity: float | None
    share: float
    relevance: float

    @property
    def answer_id(self) -> str:
        """The message that answers."""
        return self.hit.metadata["answer_id"]  # type: ignore[no-any-return]

    @property
    def question_id(self) -> str:
        """The message that asks."""
        return self.hit.metadata["question_id"]  # type: ignore[no-any-return]


class _Ranked(NamedTuple):
    """A candidate with all factors of its score."""

    candidate: _Candidate
    tally: Tally
    quality: float
    freshness: float
    trust: float
    score: float


def ask(
    history: History,
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
    """The k best answers that a group gave to a question before, best first; none where nothing fits.

    `vector` is the question's, (dimension,) numbers, where the caller has it; by default the embedder makes it. With
    `conversation`, a follow-up ("and in winter?") is searched with what was said before it there. `explain` gives every
    factor of each score (`ranking`). Raises `NotFound` unless `user` is a member and the conversation is the group's,
    `InvalidRequest`.
    """
    check_text(question, "the question", QUESTION_LENGTH_MAX)
    if type(k) is not int or not 1 <= k <= K_MAX:
        raise invalid(f"k is {k!r}", f"Ask for 1 to {K_MAX} answers")
    looked_up = (group,) if conversation is None else (group, conversation)
    _, (record, *of_conversation) = history.store.access(group, user, *looked_up)
    if record is None:
        raise not_found("group")
    if of_conversation:
        history.store.owned(of_conversation[0], group, "conversation")
    before = None if conversation is None else _before(history, group, user, conversation, question)
    if vector is None and history.embedder is not None:
        weights = history.weights
        vector = context.question_vector(
            history.embedder, question, before, weights.previous_question, weights.previous_answer
        )
    words = context.words_of(question, before)
    return _Asking(history, group_of(record), microseconds(now or now_utc())).answers(vector, words, k, explain)


def _before(history: History, group: str, user: str | None, conversation: str, question: str) -> context.Previous | None:
    """What the question leans on in its conversation. The question itself may have been appended already."""
    if not context.is_follow_up(question):
        return None
    newest, _ = history.messages.list(group, user, conversation, _EARLIER_MAX)
    if newest and newest[0].role == "user" and newest[0].text.strip() == question.strip():
        newest = newest[1:]
    turns = (context.Turn(one.role != "user" or one.answers is not None, one.text) for one in newest)
    return context.previous(question, turns)


class _Asking:
    """One question's way through the ranking."""

    def __init__(self, history: History, group: Group, now_us: int) -> None:
        self._store = history.store
        self._standings = history.standings
        self._weights: Weights = history.weights
        self._group = group
        self._now_us = now_us

    def answers(self, vector: Any, words: str, k: int, explain: bool) -> list[Answer]:
        """The k best. Where too few are left of the nearest candidates, more are looked at, once."""
        depth = max(self._weights.depth, 2 * k)
        candidates, more = self._candidates(vector, words, depth)
        chosen = self._chosen(self._ranked(candidates), k)
        if len(chosen) < k and more and depth < _DEEPER_MAX:
            candidates, _ = self._candidates(vector, words, _DEEPER_MAX)
            chosen = self._chosen(self._ranked(candidates), k)
        return [self._answer(one, similar, explain) for one, similar in chosen]

    def _candidates(self, vector: Any, words: str, depth: int) -> tuple[list[_Candidate], bool]:
        """The candidates above the floor, and whether there may be more."""
        matches = self._store.exchanges.match(vector, words, depth, Where("group", "==", self._group.id))
        found = []
        for hit, share in matches:
            similarity = None if vector is None else hit.score
            relevance = ranking.relevance(similarity, share, self._weights)
            if relevance >= ranking.floor(similarity, self._weights):
                found.append(_Candidate(hit, similarity, share, relevance))
        return found, bool(matches) and len(matches) == depth and len(found) > len(matches) // 2

    # ------------------------------------------------------------------ ranking

    def _ranked(self, candidates: list[_Candidate]) -> list[_Ranked]:
        """The candidates that may be shown, best first."""
        weights, now_us = self._weights, self._now_us
        if not candidates:
            return []
        candidates, tallies, below = self._with_successors(candidates)
        asked = self._tallies({one.question_id for one in candidates})
        authors = self._standings.authors(self._group.id, {one.hit.metadata["author"] for one in candidates})
        policy = self._group.policy
        ranked: dict[str, _Ranked] = {}
        for one in candidates:
            tally = tallies[one.answer_id]
            if tally.is_hidden(policy.flags_to_hide) or asked[one.question_id].is_hidden(policy.flags_to_hide):
                continue
            quality = ranking.quality(tally.up_weight, tally.down_weight, weights.z)
            since = max(tally.confirmed_us, _microseconds(one.hit.created))
            fresh = ranking.freshness(now_us - since, weights)
            trust = ranking.trust(authors.get(one.hit.metadata["author"], Reputation()), policy.probation_answers, weights)
            score = ranking.score(one.relevance, quality, fresh, trust, weights)
            if tally.superseded:
                score *= weights.superseded
            ranked[one.answer_id] = _Ranked(one, tally, quality, fresh, trust, score)
        for old, new in below:
            if old in ranked and new in ranked and ranked[old].score >= ranked[new].score:
                ranked[old] = ranked[old]._replace(score=ranked[new].score * weights.superseded)
        return sorted(ranked.values(), key=lambda one: -one.score)

    def _with_successors(
        self, candidates: list[_Candidate]
    ) -> tuple[list[_Candidate], dict[str, Tally], list[tuple[str, str]]]:
        """The candidates with the successors of those superseded; all tallies; and (old, new) from the end of each chain.

        A successor is as relevant as what it replaces: whoever said so said that it answers the same question.
        """
        found = {one.answer_id: one for one in candidates}
        tallies = self._tallies(found)
        below: list[tuple[str, str]] = []
        news = [name for name, tally in tallies.items() if tally.superseded]
        for _ in range(_CHAIN_MAX):
            if not news:
                break
            links = [
                (old, mark.metadata["by"])
                for old, mark in zip(news, self._store.get(*(f"supersede/{one}" for one in news)), strict=True)
                if mark is not None
            ]
            below = [*links, *below]
            missing = list(dict.fromkeys(new for _, new in links if new not in tallies))
            exchanges = self._exchanges(missing)
            tallies |= self._tallies(missing)
            for old, new in links:
                if old not in found:
                    continue
                replaced, hit = found[old], exchanges.get(new)
                if new in found:
                    if replaced.relevance > found[new].relevance:
                        found[new] = found[new]._replace(relevance=replaced.relevance)
                elif hit is not None:
                    found[new] = replaced._replace(hit=hit)
            news = [name for name in missing if tallies[name].superseded]
        return list(found.values()), tallies, below

    def _exchanges(self, answers: list[str]) -> dict[str, Hit]:
        """The exchanges of these answers, those of the group that there are."""
        records = self._store.exchanges.get([exchange_id(one) for one in answers]) if answers else []
        return {
            one.metadata["answer_id"]: Hit(one.id, 0.0, one.text, one.metadata, one.created)
            for one in records
            if one is not None and one.metadata["group"] == self._group.id
        }

    def _tallies(self, messages: Iterable[str]) -> dict[str, Tally]:
        wanted = list(messages)
        return dict(zip(wanted, self._standings.of(wanted, self._now_us, self._weights.vote_half_life_days), strict=True))

    # ------------------------------------------------------------------ choosing

    def _chosen(self, ranked: Sequence[_Ranked], k: int) -> list[tuple[_Ranked, int]]:
        """At most k that exist, no two alike, few of one author; with each how many near-duplicates it stands for."""
        chosen: list[tuple[_Ranked, _Said]] = []
        similar: list[int] = []
        authors: Counter[str] = Counter()
        for one in ranked:
            said = _Said(_parts(one.candidate.hit)[1])
            twin = next((at for at, (_, other) in enumerate(chosen) if said.is_like(other, self._weights.alike)), None)
            if twin is not None:
                similar[twin] += 1
                continue
            author = one.candidate.hit.metadata["author"]
            if len(chosen) < k and authors[author] < self._weights.per_author and self._exists(one):
                authors[author] += 1
                chosen.append((one, said))
                similar.append(0)
        return [(one, count) for (one, _), count in zip(chosen, similar, strict=True)]

    def _exists(self, one: _Ranked) -> bool:
        """Whether question and answer are live: killed in between, a writer or an eraser may leave an exchange alone."""
        held = one.candidate.hit.metadata
        return None not in self._store.records.order_keys([held["question_id"], held["answer_id"]])

    def _answer(self, one: _Ranked, similar: int, explain: bool) -> Answer:
        candidate, tally = one.candidate, one.tally
        held = candidate.hit.metadata
        question, answer = _parts(candidate.hit)
        explanation = None
        if explain:
            explanation = Explanation(
                similarity=candidate.similarity or 0.0,
                words=candidate.share,
                relevance=candidate.relevance,
                quality=one.quality,
                freshness=one.freshness,
                trust=one.trust,
            )
        return Answer(
            exchange=candidate.hit.id,
            question=question,
            answer=answer,
            author=held["author"],
            asked_by=held["asked_by"],
            role=held["role"],
            model=held.get("model"),
            node=held.get("node"),
            conversation=held["conversation"],
            question_id=held["question_id"],
            answer_id=held["answer_id"],
            created=candidate.hit.created,
            score=one.score,
            standing=self._standing(held["answer_id"], tally),
            similar=similar,
            explain=explanation,
        )

    def _standing(self, answer: str, tally: Tally) -> Standing:
        successor = None
        if tally.superseded:
            (mark,) = self._store.get(f"supersede/{answer}")
            successor = None if mark is None else mark.metadata["by"]
        return Standing(
            up=tally.up,
            down=tally.down,
            confirmed=_EPOCH + timedelta(microseconds=tally.confirmed_us) if tally.confirmed_us else None,
            comments=tally.comments,
            superseded_by=successor,
            flags=tally.flags,
        )


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _parts(hit: Hit) -> tuple[str, str]:
    """The question and the answer of an exchange."""
    text, cut = hit.text or "", hit.metadata["cut"]
    return text[:cut], text[cut + 2 :]


class _Said:
    """An answer's text, to be compared with others; its words are made out where its length does not settle it."""

    __slots__ = ("_words", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._words: set[str] | None = None

    @property
    def words(self) -> set[str]:
        """All of them, in one spelling."""
        if self._words is None:
            self._words = set(_WORDS.findall(self.text.casefold()))
        return self._words

    def is_like(self, other: _Said, share: float) -> bool:
        """Whether two answers are near-duplicates: most words in common, and every number and negation."""
        size, other_size = len(self.text), len(other.text)
        if size < share * share * other_size or other_size < share * share * size:
            return False
        words, others = self.words, other.words
        common = len(words & others)
        if common < share * (len(words) + len(others) - common):
            return False
        return not any(_DECISIVE.fullmatch(word) for word in words ^ others)
