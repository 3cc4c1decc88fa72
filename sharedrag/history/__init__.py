"""The crowd's memory: groups, conversations, messages, and the exchanges in them that answer the next one who asks."""

from sharedrag.history.errors import (
    Conflict,
    HistoryError,
    InvalidRequest,
    LeaseHeld,
    LeaseLost,
    NotAllowed,
    NotFound,
)
from sharedrag.history.history import History
from sharedrag.history.models import (
    Answer,
    Comment,
    Conversation,
    Event,
    Explanation,
    Fork,
    Group,
    KeyInfo,
    Lease,
    Member,
    Message,
    NewMessage,
    Policy,
    Standing,
)
from sharedrag.history.ranking import Weights

__all__ = [
    "Answer",
    "Comment",
    "Conflict",
    "Conversation",
    "Event",
    "Explanation",
    "Fork",
    "Group",
    "History",
    "HistoryError",
    "InvalidRequest",
    "KeyInfo",
    "Lease",
    "LeaseHeld",
    "LeaseLost",
    "Member",
    "Message",
    "NewMessage",
    "NotAllowed",
    "NotFound",
    "Policy",
    "Standing",
    "Weights",
]
