"""When an answer of the crowd may be served as it is, with no model asked: only behind every gate here.

A high cosine is not enough: of cached answers at cosine 0.99, 0.90 and 0.75 some 92 % were right alike (AWS, 63,796
queries), and opposite questions reach 0.83 to 0.9997 (GPTCache #694). So the two questions must also agree in every number,
negation, name and opposite, and the answer must be judged well, lately, by others. Off unless a group's policy says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sharedrag.history import ranking
from sharedrag.history.models import Answer
from sharedrag.history.records import microseconds, now_utc

if TYPE_CHECKING:
    from sharedrag.history.history import History

COSINE_MIN = 0.9  # of the two questions, by their own vectors
SHARED_MIN = 0.6  # of their words, where they differ in the rest
APPROVERS_MIN = 2
QUALITY_MIN = 0.55
FRESHNESS_MIN = 0.65
LEAD_MIN = 1.2  # of its score over the next answer's

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_NEGATION = re.compile(r"no|not|never|none|nobody|nothing|neither|nor|without|cannot|\w+n't|except|unless|stop|avoid")
_OPPOSED = """
in/out into/out from/to to/off before/after open/closed open/shut opening/closing summer/winter day/night north/south
east/west up/down buy/sell allowed/forbidden legal/illegal required/optional more/less most/least first/last on/off
enable/disable start/stop add/remove increase/decrease min/max minimum/maximum left/right old/new arrive/leave
arrival/departure sunrise/sunset morning/evening dry/wet safe/dangerous cheap/expensive with/without early/late
inside/outside above/below import/export login/logout
"""
_OPPOSITES = tuple(frozenset(pair.split("/")) for pair in _OPPOSED.split())
_LITTLE = """
a an the is are was were be been do does did can could may might will would shall should i we you they he she it my our
your their me us them of for at by as and or if so that this there here have has had get got please what which who how why
"""
_SMALL = frozenset(_LITTLE.split())


def direct_answer(history: History, group: str, question: str, answers: Sequence[Answer]) -> Answer | None:
    """The first of these answers to a question if it may be served as it is, else None.

    Wanted: the group's policy; approval by at least two others and nobody's objection or flag; good quality; confirmed or
    given lately; not superseded; clearly ahead of the next; and a question that asks the same (`same_question`).
    """
    if not answers or not history.groups.get(group).policy.direct_answer:
        return None
    best = answers[0]
    if not _well_judged(history, best) or (len(answers) > 1 and best.score < LEAD_MIN * answers[1].score):
        return None
    if not same_question(question, best.question):
        return None
    if history.embedder is None:
        return best if _content(question) == _content(best.question) else None
    one, other = history.embedder.embed_texts([question, best.question])
    return best if float(np.dot(one, other)) >= COSINE_MIN else None


def _well_judged(history: History, answer: Answer) -> bool:
    standing, weights = answer.standing, history.weights
    if standing.down or standing.flags or standing.superseded_by is not None or standing.moderation != "visible":
        return False
    since = max(answer.created, standing.confirmed or answer.created)
    fresh = ranking.freshness(microseconds(now_utc()) - microseconds(since), weights)
    quality = ranking.quality(standing.up, standing.down, weights.z)
    return standing.up >= APPROVERS_MIN and quality >= QUALITY_MIN and fresh >= FRESHNESS_MIN


def same_question(one: str, other: str) -> bool:
    """Whether two questions agree in numbers, negations, names and opposites, and in most of their words."""
    words, others = _words(one), _words(other)
    differing = words ^ others
    if any(word[0].isdigit() or _NEGATION.fullmatch(word) for word in differing):
        return False
    if differing & (_names(one) | _names(other)):
        return False
    if any(pair & (words - others) and pair & (others - words) for pair in _OPPOSITES):
        return False
    content, other_content = _content(one), _content(other)
    both = len(content & other_content)
    return both >= SHARED_MIN * len(content | other_content)


def _words(text: str) -> set[str]:
    return {word.replace("’", "'") for word in _WORD.findall(text.casefold().replace("’", "'"))}


def _content(text: str) -> set[str]:
    return _words(text) - _SMALL


def _names(text: str) -> set[str]:
    """Words with a capital where no sentence begins, and those with a digit in them."""
    found = set()
    for match in _WORD.finditer(text):
        word = match.group()
        begins = not text[: match.start()].strip() or text[: match.start()].rstrip()[-1] in ".!?:"
        if any(one.isdigit() for one in word) or (any(one.isupper() for one in word) and not begins and word != "I"):
            found.add(word.casefold())
    return found - _SMALL
