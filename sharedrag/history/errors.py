"""What can go wrong with a history. Across groups everything is `NotFound`: that something exists is not told either."""

from __future__ import annotations

from sharedrag.errors import SharedRagError


class HistoryError(SharedRagError):
    """Base of the errors of this package."""


class NotFound(HistoryError):
    """No such group, member, conversation, message, or none that this user may see."""


class NotAllowed(HistoryError):
    """A member's own group, but not a right that this member has."""


class InvalidRequest(HistoryError, ValueError):
    """What was asked for means nothing; the hint says what would."""


class Conflict(HistoryError):
    """Somebody else changed it first."""


class LeaseHeld(Conflict):
    """Another member has the wheel of this conversation; the message says who and until when."""


class LeaseLost(Conflict):
    """The fencing token is no longer the newest: somebody else has taken the wheel since."""
