"""What is counted: hit@1, hit@5, mean reciprocal rank, and the share of questions that were answered falsely."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel

from tests.eval.data import Question

LOOKED_AT = 10  # answers in which a right one counts for the mean reciprocal rank


class Score(BaseModel):
    """Over the answerable questions: hit@1, hit@5, MRR, and the share that got no answer (silent).

    Over all: false, the share whose first answer is labelled wrong, or that nothing answers and that got one nonetheless.
    """

    questions: int
    hit1: float
    hit5: float
    mrr: float
    false: float
    silent: float

    @property
    def worth(self) -> float:
        """What settings are chosen by: a false answer costs twice what a right one is worth."""
        return self.hit1 - 2 * self.false


def score(questions: Sequence[Question], found: Mapping[str, Sequence[str]]) -> Score:
    """The score of what was found, ids of answers by question's id, best first."""
    answerable = [one for one in questions if one.relevant]
    ranks = [_rank(one, found[one.id][:LOOKED_AT]) for one in answerable]
    false = sum(bool(found[one.id]) and (not one.relevant or found[one.id][0] in one.wrong) for one in questions)
    count = max(1, len(answerable))
    return Score(
        questions=len(questions),
        hit1=sum(rank == 1 for rank in ranks) / count,
        hit5=sum(0 < rank <= 5 for rank in ranks) / count,
        mrr=sum(1 / rank for rank in ranks if rank) / count,
        false=false / max(1, len(questions)),
        silent=sum(not found[one.id] for one in answerable) / count,
    )


def by_kind(questions: Iterable[Question], found: Mapping[str, Sequence[str]]) -> dict[str, Score]:
    """The same for each kind of question."""
    kinds: dict[str, list[Question]] = {}
    for one in questions:
        kinds.setdefault(one.kind, []).append(one)
    return {kind: score(some, found) for kind, some in kinds.items()}


def _rank(question: Question, found: Sequence[str]) -> int:
    return next((at for at, one in enumerate(found, start=1) if one in question.relevant), 0)
