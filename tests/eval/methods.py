"""The ways of answering that are compared: plain cosine, plain BM25, both fused, and the history's own `ask`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sharedrag import Pool
from sharedrag.embed import Embedder
from sharedrag.history import History, NewMessage, Weights
from sharedrag.history.context import Previous, Turn, previous, question_vector
from tests.eval.data import Case, Question
from tests.eval.scores import LOOKED_AT, Score, score

Found = dict[str, list[str]]
Done = Callable[[int], None]
ASKER = "somebody else"
_PLAIN = ("question", "question and answer")


class Place(NamedTuple):
    """A data set in a history, and its questions' vectors by themselves and after what was said before."""

    case: Case
    pool: Pool
    group: str
    names: dict[str, str]  # the data's ids by the history's
    conversations: dict[str, str]  # a conversation for each question that something was said before
    alone: npt.NDArray[np.float32]
    after: npt.NDArray[np.float32]  # its context and the question embedded as one text


def fill(pool: Pool, embedder: Embedder, case: Case, done: Done) -> Place:
    """Everything that was said, by the ways that applications use; then plain collections of the same for the others."""
    history = History(pool, case.name, embedder)
    group = history.groups.create(case.name).id
    members = {said.author for one in case.conversations for said in one} | {ASKER}
    for member in sorted(members):
        history.groups.add_member(group, member)
    ids: dict[str, str] = {}
    texts: list[tuple[str, str, str]] = []
    for conversation in case.conversations:
        place = history.conversations.create(group, conversation[0].author).id
        asked = {said.id: said.text for said in conversation}
        for said in conversation:
            question = None if said.replies_to is None else ids[said.replies_to]
            message = NewMessage(
                text=said.text,
                role="user" if question is None else "assistant",
                answers=question,
                created=said.time,
                crowd=said.crowd,
            )
            (stored,) = history.messages.append(group, said.author, place, [message])
            ids[said.id] = stored.id
            if said.supersedes is not None:
                history.marks.supersede(group, said.author, ids[said.supersedes], stored.id)
            if said.replies_to is not None and said.crowd:
                texts.append((said.id, asked[said.replies_to], said.text))
        done(len(conversation))
    _fill_plain(pool, embedder, case, texts)
    done(1)
    return _with_questions(pool, embedder, history, case, group, {new: old for old, new in ids.items()})


def _fill_plain(pool: Pool, embedder: Embedder, case: Case, texts: Sequence[tuple[str, str, str]]) -> None:
    together = [f"{question}\n\n{answer}" for _, question, answer in texts]
    names = [name for name, _, _ in texts]
    for what, embedded in zip(_PLAIN, ([question for _, question, _ in texts], together), strict=True):
        plain = pool.collection(f"{case.name} plain {what}", embedder.dimension, embedding_model=embedder.name)
        plain.put(names, embedder.embed_texts(embedded), together)


def _with_questions(
    pool: Pool, embedder: Embedder, history: History, case: Case, group: str, names: dict[str, str]
) -> Place:
    conversations = {}
    for one in case.questions:
        if one.before:
            conversations[one.id] = talk(history, group, one.before)
    alone = embedder.embed_texts([one.text for one in case.questions])
    after = embedder.embed_texts([_with_context(one) for one in case.questions])
    return Place(case, pool, group, names, conversations, alone, after)


def talk(history: History, group: str, before: Sequence[tuple[bool, str]]) -> str:
    """A conversation in which this was said; none of it is an exchange."""
    place = history.conversations.create(group, ASKER).id
    messages = [NewMessage(role="assistant" if answer else "user", text=text, crowd=False) for answer, text in before]
    history.messages.append(group, ASKER, place, messages)
    return place


def _with_context(question: Question) -> str:
    return " ".join([*(text for _, text in question.before), question.text])


# ---------------------------------------------------------------------- the plain ways


def plain(place: Place, what: str, by: str) -> Found:
    """By "cosine", "BM25" or "fused" over what was embedded: the question, or question and answer.

    Follow-ups are asked alone or with what was said before in front: whichever finds more right answers first.
    """
    collection = place.pool.collection(f"{place.case.name} plain {what}")
    best: Found = {}
    for vectors, with_context in ((place.alone, False), (place.after, True)):
        found = {}
        for question, vector in zip(place.case.questions, vectors, strict=True):
            text = _with_context(question) if with_context else question.text
            vector_asked, text_asked = (None if by == "BM25" else vector), (None if by == "cosine" else text)
            hits = collection.search(vector_asked, LOOKED_AT, text=text_asked, exact=True)
            found[question.id] = [hit.id for hit in hits]
        if not best or score(place.case.questions, found).hit1 > score(place.case.questions, best).hit1:
            best = found
    return best


def cosine_above(place: Place, floor: float) -> Found:
    """Plain cosine of questions and answers, those above a floor."""
    collection = place.pool.collection(f"{place.case.name} plain question and answer")
    return {
        question.id: [hit.id for hit in collection.search(vector, LOOKED_AT, exact=True) if hit.score >= floor]
        for question, vector in zip(place.case.questions, place.alone, strict=True)
    }


# ---------------------------------------------------------------------- the history's


def vectors_of(place: Place, embedder: Embedder, weights: Weights) -> list[npt.NDArray[np.float32]]:
    """The questions' vectors as `ask` makes them; made once, since most settings leave them as they are."""
    return [
        question_vector(embedder, one.text, _leans_on(one), weights.previous_question, weights.previous_answer)
        for one in place.case.questions
    ]


def _leans_on(question: Question) -> Previous | None:
    return previous(question.text, (Turn(*one) for one in reversed(question.before)))


def ask(place: Place, vectors: Sequence[npt.NDArray[np.float32]], weights: Weights, embedder: Embedder) -> Found:
    """`History.ask` with these settings."""
    history = History(place.pool, place.case.name, embedder, weights)
    found = {}
    for question, vector in zip(place.case.questions, vectors, strict=True):
        answers = history.ask(
            place.group,
            question.text,
            LOOKED_AT,
            user=ASKER,
            vector=vector,
            conversation=place.conversations.get(question.id),
            now=place.case.now,
        )
        found[question.id] = [place.names[one.answer_id] for one in answers]
    return found


def changed_subject(place: Place, embedder: Embedder, weights: Weights) -> tuple[list[Question], Found]:
    """The questions that lean on nothing, asked in a conversation about something else: no harm should come of it."""
    history = History(place.pool, place.case.name, embedder, weights)
    questions = [one for one in place.case.questions if not one.before and one.relevant]
    found = {}
    for at, question in enumerate(questions):
        asked, answered = place.case.subjects[at * 7919 % len(place.case.subjects)]
        conversation = talk(history, place.group, [(False, asked), (True, answered)])
        answers = history.ask(
            place.group, question.text, LOOKED_AT, user=ASKER, conversation=conversation, now=place.case.now
        )
        found[question.id] = [place.names[one.answer_id] for one in answers]
    return questions, found


def cross_validated(questions: Sequence[Question], tried: Sequence[tuple[str, Found]]) -> tuple[Score, list[str]]:
    """Settings chosen on one half of the questions, scored on the other, and the reverse; and which they were."""
    found: Found = {}
    chosen = []
    for half in (0, 1):
        own = [one for one in questions if one.half == half]
        name, best = max(tried, key=lambda one: score(own, one[1]).worth)
        chosen.append(name)
        found |= {one.id: best[one.id] for one in questions if one.half != half}
    return score(questions, found), chosen
