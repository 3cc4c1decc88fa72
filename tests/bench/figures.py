"""A figure of the bench: what was measured, what is demanded, and what bounds it."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Limit:
    """What a figure is compared with, in the figure's unit: the machine's own bound, or the same thing done privately."""

    what: str
    value: float


@dataclass(frozen=True)
class Figure:
    """One line of the table; `value` is the median of `rounds`."""

    name: str
    what: str
    unit: str
    rounds: list[float]
    higher_is_better: bool
    demanded: float | None = None  # at least if higher is better, else at most
    limit: Limit | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The median round."""
        return statistics.median(self.rounds)

    @property
    def best(self) -> float:
        """The round that others on this machine disturbed least."""
        return max(self.rounds) if self.higher_is_better else min(self.rounds)

    @property
    def met(self) -> bool | None:
        """Whether the median meets the demand; None where nothing is demanded."""
        if self.demanded is None:
            return None
        return self.value >= self.demanded if self.higher_is_better else self.value <= self.demanded

    def as_json(self) -> dict[str, Any]:
        """All of it, plain."""
        return {**asdict(self), "value": self.value, "best": self.best, "met": self.met}


def percentile(values: list[float], share: float) -> float:
    """The value that `share` (0..1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]
