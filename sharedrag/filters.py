"""Filters over a record's metadata: what they mean, how they are written, and what they let a scan skip.

A filter is `Where(name, op, value)`, or `And`, `Or`, `Not` of filters. `parse` reads the dict form that callers write:
`{"room": "hawaii", "year": {">=": 2020}, "$or": [{"lang": "en"}, {"lang": {"is_empty": True}}]}`.

What an operator answers is what LlamaIndex's own helper answers wherever that answers at all:
- a key that is missing, or null, matches `!=`, `nin` and `is_empty` only; `is_empty` is null, "" or [];
- values are compared as Python compares them, so 1, 1.0 and True are equal;
- `in` and `nin` look for the record's value in the given list; `contains`, `any` and `all` look for the given values in
  the record's list (or, as substrings, in its text); `text_match` looks for a substring;
- where the helper would raise, because a record holds another type than the filter expects, the record does not match:
  one odd record must not fail everybody's query.

Metadata is JSON, and so are the values here: a datetime given in a filter is compared as the ISO-8601 text that the
record holds. `Created`, written `{"$created": {">=": datetime or ISO-8601 text}}`, compares the record's own time, which is
no metadata. Nothing in this module knows LlamaIndex.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson

from sharedrag.errors import InvalidFilter

Filter: TypeAlias = "Where | Created | And | Or | Not"

_ORDERED: dict[str, Callable[[Any, Any], Any]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
_LISTS = ("in", "nin", "any", "all")
_TEXTS = ("text_match", "text_match_insensitive")
OPERATORS = ("==", "!=", *_ORDERED, *_LISTS, *_TEXTS, "contains", "is_empty")
_MEANT = {
    "=": "==",
    "eq": "==",
    "ne": "!=",
    "gt": ">",
    "gte": ">=",
    "lt": "<",
    "lte": "<=",
    "not in": "nin",
}
CREATED = "$created"
_CREATED_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {"==": operator.eq, "!=": operator.ne, **_ORDERED}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PLAIN = frozenset({str, int, float, bool, type(None)})


def _invalid(what: str, hint: str) -> InvalidFilter:
    return InvalidFilter(what, operation="filter", hint=hint)


@dataclass(frozen=True, slots=True)
class Where:
    """The record's value under the key `name` compared with `value` by `op`; `InvalidFilter` if that means nothing."""

    name: str
    op: str = "=="
    value: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise _invalid(f"a filter's key is a {type(self.name).__name__}", "Keys are strings")
        if self.op not in OPERATORS:
            meant = _MEANT.get(str(self.op).lstrip("$"))
            hint = f"Write {meant!r}" if meant else "Operators: " + " ".join(OPERATORS)
            raise _invalid(f"no operator {self.op!r} (on {self.name!r})", hint)
        object.__setattr__(self, "value", None if self.op == "is_empty" else _as_json(self.value, self.name))
        self._check_value()

    def _check_value(self) -> None:
        op, value = self.op, self.value
        what = f"{op!r} on {self.name!r} compared with {value!r:.80}"
        if op in _LISTS and not isinstance(value, tuple):
            raise _invalid(what, "It takes a list")
        if op in _TEXTS and not isinstance(value, str):
            raise _invalid(what, "It takes a string")
        if op in _ORDERED and (value is None or isinstance(value, tuple)):
            raise _invalid(what, "It takes a number or a string; for lists there are any, all and contains")

    def matches(self, metadata: Mapping[str, Any], created_us: int | None = None) -> bool:
        """Whether a record with this metadata passes; `created_us` is its own time, for filters that ask for it."""
        held = metadata.get(self.name)
        if self.op == "is_empty":
            return held is None or held == "" or held == []
        if held is None:
            return self.op in ("!=", "nin")
        return bool(_COMPARE[self.op](_frozen(held), self.value))

    def needles(self) -> list[bytes]:
        """Byte strings that `orjson.dumps` of every matching metadata contains; empty if there is nothing to go by.

        Only a string has one spelling in JSON: 1, 1.0 and true are equal, so of a number only the key is certain.
        """
        key = None if self.op in ("!=", "nin", "is_empty") else _json(self.name)
        if key is None:
            return []
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        strings = [one for one in (_json(value) for value in values if isinstance(value, str)) if one is not None]
        if len(values) == len(strings) == 1 and (self.op == "in" or (self.op == "==" and isinstance(self.value, str))):
            return [key + b":" + strings[0]]
        # JSON escapes character by character, so a part of a text is a part of its JSON too.
        inside = self.op in ("contains", "text_match", "all") or (self.op == "any" and len(values) == 1)
        return _distinct([key + b":", *(one[1:-1] for one in strings if inside and len(one) > 2)])

    def key(self) -> str:
        """The filter as text, fit to be the key of a cache: the same text, the same answers."""
        return repr((self.op, self.name, self.value))


@dataclass(frozen=True, slots=True)
class Created:
    """The record's own time compared with a moment, by == != > < >= <=. `InvalidFilter` if that means nothing.

    `value` is given as a datetime (without a zone: UTC), a date (its first moment in UTC) or ISO-8601 text of either, and
    kept in us since 1970.
    """

    op: str
    value: Any

    def __post_init__(self) -> None:
        if self.op not in _CREATED_OPERATORS:
            meant = _MEANT.get(str(self.op).lstrip("$"))
            hint = f"Write {meant!r}" if meant in _CREATED_OPERATORS else "Operators: " + " ".join(_CREATED_OPERATORS)
            raise _invalid(f"no operator {self.op!r} (on {CREATED!r})", hint)
        object.__setattr__(self, "value", _microseconds(self.value))

    def matches(self, metadata: Mapping[str, Any], created_us: int | None = None) -> bool:
        """As `Where.matches`; raises `InvalidFilter` without the record's time."""
        if created_us is None:
            raise _invalid(f"{CREATED!r} asked of metadata alone", "Use it with `find`, `search` or `scan`")
        return bool(_CREATED_OPERATORS[self.op](created_us, self.value))

    def among(self, created_us: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of these times, (n,) int64 us since 1970, match: (n,) bool."""
        return _CREATED_OPERATORS[self.op](created_us, self.value)  # type: ignore[no-any-return]

    def within(self, first_us: int, last_us: int) -> bool | None:
        """True if every time from first to last matches, False if none does, None if that depends."""
        low, high = self.matches({}, first_us), self.matches({}, last_us)
        inside = first_us < self.value < last_us
        if self.op in ("==", "!="):
            return None if inside or low != high else low
        return low if low == high else None

    def needles(self) -> list[bytes]:
        """None: it is no metadata."""
        return []

    def key(self) -> str:
        """As `Where.key`."""
        return f"created({self.op}{self.value})"


@dataclass(frozen=True, slots=True, init=False)
class And:
    """All parts match; without parts, always."""

    parts: tuple[Filter, ...]

    def __init__(self, *parts: Filter) -> None:
        object.__setattr__(self, "parts", _checked(parts))

    def matches(self, metadata: Mapping[str, Any], created_us: int | None = None) -> bool:
        """As `Where.matches`."""
        return all(part.matches(metadata, created_us) for part in self.parts)

    def needles(self) -> list[bytes]:
        """As `Where.needles`: what one part needs, all need."""
        return _distinct(needle for part in self.parts for needle in part.needles())

    def key(self) -> str:
        """As `Where.key`; the order of the parts does not count."""
        return f"and({','.join(sorted({part.key() for part in self.parts}))})"


@dataclass(frozen=True, slots=True, init=False)
class Or:
    """At least one part matches; without parts, never."""

    parts: tuple[Filter, ...]

    def __init__(self, *parts: Filter) -> None:
        object.__setattr__(self, "parts", _checked(parts))

    def matches(self, metadata: Mapping[str, Any], created_us: int | None = None) -> bool:
        """As `Where.matches`."""
        return any(part.matches(metadata, created_us) for part in self.parts)

    def needles(self) -> list[bytes]:
        """As `Where.needles`: what is in some needle of every part."""
        each = [part.needles() for part in self.parts]
        found = (one for needles in each for one in needles)
        return _distinct(one for one in found if all(any(one in other for other in needles) for needles in each))

    def key(self) -> str:
        """As `Where.key`; the order of the parts does not count."""
        return f"or({','.join(sorted({part.key() for part in self.parts}))})"


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not match."""

    part: Filter

    def __post_init__(self) -> None:
        _checked((self.part,))

    def matches(self, metadata: Mapping[str, Any], created_us: int | None = None) -> bool:
        """As `Where.matches`."""
        return not self.part.matches(metadata, created_us)

    def needles(self) -> list[bytes]:
        """None: what a record lacks is in no place."""
        return []

    def key(self) -> str:
        """As `Where.key`."""
        return f"not({self.part.key()})"


def parse(given: Mapping[str, Any] | Filter | None) -> Filter | None:
    """The filter that a caller's dict means; None for None and {}. Raises `InvalidFilter` with a hint.

    A plain value means equality, several keys mean AND, a dict under a key holds operators, `$and` and `$or` take lists
    of filters and `$not` takes one. `$created` is the record's own time.
    """
    if given is None or isinstance(given, _KINDS):
        return given
    if not isinstance(given, Mapping):
        raise _invalid(f"a filter is a {type(given).__name__}", 'Write {"key": value} or use sharedrag.filters')
    parts = [part for key, value in given.items() for part in _parse_item(key, value)]
    return None if not parts else _join(parts)


def _parse_item(key: Any, value: Any) -> list[Filter]:
    if not isinstance(key, str):
        raise _invalid(f"a filter's key is a {type(key).__name__}", "Keys are strings")
    if key in ("$and", "$or"):
        if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
            raise _invalid(f"{key} of a {type(value).__name__}", f'Write {{"{key}": [{{...}}, {{...}}]}}')
        parts = [_parse_part(key, one) for one in value]
        if not parts:
            raise _invalid(f"{key} of nothing", "Give it at least one filter")
        return [And(*parts) if key == "$and" else Or(*parts)]
    if key == "$not":
        return [Not(_parse_part(key, value))]
    if key.startswith("$") and key != CREATED:
        raise _invalid(
            f"no {key!r} here",
            "Between filters there are $and, $or, $not and $created; for such a key use Where(name, op, value)",
        )
    if isinstance(value, Mapping):
        if not value:
            raise _invalid(f"{key!r} compared with {{}}", 'Write {"key": {"==": value}}')
        return [_parse_operator(key, op, wanted) for op, wanted in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        raise _invalid(f"{key!r} compared with a list", 'Write {"key": {"in": [...]}}, or "any", "all" or "=="')
    if value is None:
        raise _invalid(f"{key!r} compared with None", 'Write {"key": {"is_empty": True}}')
    return [_parse_operator(key, "==", value)]


_KINDS = (Where, Created, And, Or, Not)


def is_timed(wanted: Filter) -> bool:
    """Whether the filter asks for records' own times."""
    if isinstance(wanted, (And, Or)):
        return any(map(is_timed, wanted.parts))
    return is_timed(wanted.part) if isinstance(wanted, Not) else isinstance(wanted, Created)


def _parse_part(key: str, given: Any) -> Filter:
    part = parse(given)
    if part is None:
        raise _invalid(f"an empty filter in {key}", "Leave it out")
    return part


def _parse_operator(key: str, op: Any, value: Any) -> Filter:
    if op == "$not":
        return Not(_join(_parse_item(key, value)))
    if key == CREATED:
        return Created(op, value)
    if op == "is_empty" and value is False:
        return Not(Where(key, "is_empty"))
    return Where(key, op, value)


def _join(parts: list[Filter]) -> Filter:
    return parts[0] if len(parts) == 1 else And(*parts)


def _checked(parts: tuple[Any, ...]) -> tuple[Filter, ...]:
    for part in parts:
        if not isinstance(part, _KINDS):
            raise _invalid(
                f"a part of a filter is a {type(part).__name__}", "Parts are filters; parse({...}) makes one of a dict"
            )
    return parts


def _as_json(value: Any, key: str) -> Any:
    """The value as JSON would give it back, lists as tuples so that filters can be hashed."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(_as_json(one, key) for one in value)
    if not isinstance(value, Mapping):
        try:
            return _frozen(orjson.loads(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)))
        except TypeError:
            pass
    raise _invalid(f"{key!r} compared with a {type(value).__name__}", "Metadata holds JSON values; compare with one")


def _microseconds(given: object) -> int:
    """A moment in us since 1970; raises `InvalidFilter`."""
    moment = given
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            moment = None
    if isinstance(moment, date) and not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    if not isinstance(moment, datetime):
        raise _invalid(f"{CREATED!r} compared with {given!r:.80}", "Give a datetime, or a text such as '2026-01-31T12:00Z'")
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(one) for one in value) if isinstance(value, (list, tuple)) else value


def _json(text: str) -> bytes | None:
    """The text as it stands in JSON; None if it cannot stand there (lone surrogates)."""
    try:
        return orjson.dumps(text)
    except TypeError:
        return None


def _distinct(needles: Iterable[bytes]) -> list[bytes]:
    return list(dict.fromkeys(needles))


def _contains(held: Any, wanted: Any) -> bool:
    try:
        return wanted in held
    except TypeError:
        return False


def _ordered(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def compared(held: Any, wanted: Any) -> Any:
        try:
            return compare(held, wanted)
        except TypeError:
            return False

    return compared


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    **{op: _ordered(compare) for op, compare in _ORDERED.items()},
    "in": lambda held, wanted: held in wanted,
    "nin": lambda held, wanted: held not in wanted,
    "any": lambda held, wanted: any(_contains(held, one) for one in wanted),
    "all": lambda held, wanted: all(_contains(held, one) for one in wanted),
    "contains": _contains,
    "text_match": lambda held, wanted: isinstance(held, str) and wanted in held,
    "text_match_insensitive": lambda held, wanted: isinstance(held, str) and wanted.lower() in held.lower(),
}
