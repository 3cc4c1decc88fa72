"""Filters: an independent evaluation agrees, needles never hide a match, and nonsense is refused with a hint."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sharedrag.errors import InvalidFilter
from sharedrag.filters import OPERATORS, And, Filter, Not, Or, Where, parse

# Few keys and values, so that filters often meet records; among them everything that JSON spells in a way of its own.
KEYS = ["room", "a", 'qu"ote', "back\\slash", "ünï 🌺", "nul\x00", "tab\t", "", "a.b", "$dollar"]
STRINGS = [
    "",
    "a",
    "b",
    "ab",
    "hawaii",
    'say "aloha"',
    "\\",
    "\n",
    "\u2028",
    "ʻokina",
    "🌺",
    "\x7f",
    "null",
    "1",
    "a:b",
    "İ",
]
SCALARS: list[Any] = [*STRINGS, 0, 1, 2, -1, 1.0, 0.0, -0.0, 1.5, 1e300, 2**53, True, False]

scalars = st.sampled_from(SCALARS)
values = st.one_of(
    scalars,
    st.none(),
    st.lists(scalars, max_size=3),
    st.lists(st.lists(scalars, max_size=2), max_size=2),
    st.dictionaries(st.sampled_from(KEYS), scalars, max_size=2),
)
metadata = st.dictionaries(st.sampled_from(KEYS), values, max_size=5)


def _wheres() -> st.SearchStrategy[Where]:
    keys = st.sampled_from(KEYS)
    lists = st.lists(scalars, max_size=3)
    return st.one_of(
        st.builds(Where, keys, st.sampled_from(["==", "!="]), st.one_of(scalars, st.none(), lists)),
        st.builds(Where, keys, st.sampled_from([">", "<", ">=", "<="]), scalars),
        st.builds(Where, keys, st.sampled_from(["in", "nin", "any", "all"]), lists),
        st.builds(Where, keys, st.sampled_from(["text_match", "text_match_insensitive"]), st.sampled_from(STRINGS)),
        st.builds(Where, keys, st.just("contains"), scalars),
        st.builds(Where, keys, st.just("is_empty")),
    )


filters = st.recursive(
    _wheres(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: And(*parts)),
        st.lists(inner, max_size=3).map(lambda parts: Or(*parts)),
        st.builds(Not, inner),
    ),
    max_leaves=6,
)


def naive(one: Filter, record: dict[str, Any]) -> bool:
    """The meaning of a filter, said once more and as plainly as can be."""
    match one:
        case And(parts=parts):
            return not [part for part in parts if not naive(part, record)]
        case Or(parts=parts):
            return bool([part for part in parts if naive(part, record)])
        case Not(part=part):
            return not naive(part, record)
    assert isinstance(one, Where)
    has = one.name in record and record[one.name] is not None
    if one.op == "is_empty":
        return not has or record[one.name] in ("", [])
    if not has:
        return one.op in {"!=", "nin"}
    return naive_where(one.op, record[one.name], thawed(one.value))


def thawed(value: Any) -> Any:
    """Lists again, as JSON has them."""
    return [thawed(one) for one in value] if isinstance(value, tuple) else value


def naive_where(op: str, held: Any, wanted: Any) -> bool:
    """One comparison; what Python refuses to compare does not match."""
    try:
        results: dict[str, Any] = {
            "==": lambda: held == wanted,
            "!=": lambda: held != wanted,
            ">": lambda: held > wanted,
            "<": lambda: held < wanted,
            ">=": lambda: held >= wanted,
            "<=": lambda: held <= wanted,
            "in": lambda: any(held == one for one in wanted),
            "nin": lambda: not any(held == one for one in wanted),
            "contains": lambda: wanted in held,
            "any": lambda: any(naive_where("contains", held, one) for one in wanted),
            "all": lambda: not any(not naive_where("contains", held, one) for one in wanted),
            "text_match": lambda: isinstance(held, str) and held.find(wanted) >= 0,
            "text_match_insensitive": lambda: isinstance(held, str) and held.lower().find(wanted.lower()) >= 0,
        }
        return bool(results[op]())
    except TypeError:
        return False


@settings(max_examples=1000, deadline=None)
@given(filters, metadata)
@example(Where("a", "==", 1), {"a": True})
@example(Where("a", "in", [1]), {"a": 1.0})
@example(Where("a", "==", ["a", "b"]), {"a": ["a", "b"]})
@example(Where("a", "in", [["a"]]), {"a": ["a"]})
@example(Where("a", "contains", "a"), {"a": {"a": 1}})
@example(Or(), {})
@example(And(), {})
def test_matches_agrees_with_the_naive_evaluation(one: Filter, record: dict[str, Any]) -> None:
    """Any filter answers for any metadata as the plain restatement of its meaning does, before and after storage."""
    assert one.matches(record) == naive(one, record)
    assert one.matches(orjson.loads(orjson.dumps(record))) == one.matches(record)


@settings(max_examples=1000, deadline=None)
@given(filters, metadata)
@example(Where('qu"ote', "==", "\\"), {'qu"ote': "\\"})
@example(Where("a", "==", 1), {"a": 1.0})
@example(Where("a", "==", 1), {"a": True})
@example(Where("a", "all", ["🌺", "\n"]), {"a": "x🌺\n"})
@example(Where("a", "contains", 'say "aloha"'), {"a": ['say "aloha"']})
@example(Or(Where("a", "==", "a"), Where("a", "text_match", "a")), {"a": "ab"})
def test_every_match_holds_every_needle(one: Filter, record: dict[str, Any]) -> None:
    """A record that matches contains, as orjson writes it, every needle: a scan that skips others misses nothing."""
    if one.matches(record):
        serialised = orjson.dumps(record)
        for needle in one.needles():
            assert needle, "an empty needle says nothing"
            assert needle in serialised


@settings(max_examples=500, deadline=None)
@given(filters, filters, metadata)
def test_equal_keys_mean_equal_answers(one: Filter, other: Filter, record: dict[str, Any]) -> None:
    """What a cache keys by a filter's key or by the filter itself is the same answer for everybody with that key."""
    if one.key() == other.key() or one == other:
        assert one.matches(record) == other.matches(record)
    copy = pickle.loads(pickle.dumps(one))
    assert copy == one
    assert hash(copy) == hash(one)
    assert copy.key() == one.key()


@pytest.mark.parametrize(
    ("one", "needles"),
    [
        (Where("room", "==", "hawaii"), [b'"room":"hawaii"']),
        (Where("room", "in", ["hawaii"]), [b'"room":"hawaii"']),
        (Where("room", "in", ["hawaii", "maui"]), [b'"room":']),
        (Where("year", ">=", 2020), [b'"year":']),
        (Where("year", "==", 2020), [b'"year":']),
        (Where("tags", "all", ["a", "b"]), [b'"tags":', b"a", b"b"]),
        (Where("tags", "any", ["a", "b"]), [b'"tags":']),
        (Where("name", "text_match", 'x"y'), [b'"name":', b'x\\"y']),
        (Where("name", "text_match", ""), [b'"name":']),
        (Where("room", "!=", "hawaii"), []),
        (Where("room", "nin", ["hawaii"]), []),
        (Where("room", "is_empty"), []),
        (Where("room", "==", "\ud800"), [b'"room":']),
        (Where("\ud800", "==", "hawaii"), []),
        (And(Where("room", "==", "h"), Where("year", ">", 1), Where("room", "==", "h")), [b'"room":"h"', b'"year":']),
        (Or(Where("room", "==", "h"), Where("room", "in", ["h", "m"])), [b'"room":']),
        (Or(Where("room", "==", "h"), Where("year", "==", 1)), []),
        (Not(Where("room", "==", "hawaii")), []),
    ],
)
def test_needles_are_as_sharp_as_they_can_be(one: Filter, needles: list[bytes]) -> None:
    """A prefilter is worth having only if it is sharp: these are the exact byte strings."""
    assert one.needles() == needles


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, None),
        ({}, None),
        ({"room": "hawaii"}, Where("room", "==", "hawaii")),
        ({"room": "h", "year": 1}, And(Where("room", "==", "h"), Where("year", "==", 1))),
        ({"year": {">=": 2020, "<": 2025}}, And(Where("year", ">=", 2020), Where("year", "<", 2025))),
        ({"tags": {"any": ["a", "b"]}}, Where("tags", "any", ["a", "b"])),
        ({"$and": [{"a": 1}, {"b": 2}]}, And(Where("a", "==", 1), Where("b", "==", 2))),
        ({"$or": [{"a": 1}, Where("b", "==", 2)]}, Or(Where("a", "==", 1), Where("b", "==", 2))),
        ({"$not": {"a": 1, "b": 2}}, Not(And(Where("a", "==", 1), Where("b", "==", 2)))),
        ({"a": {"$not": {">": 2}}}, Not(Where("a", ">", 2))),
        ({"a": {"is_empty": True}}, Where("a", "is_empty")),
        ({"a": {"is_empty": False}}, Not(Where("a", "is_empty"))),
        (Where("a", "==", 1), Where("a", "==", 1)),
    ],
)
def test_a_dict_means_what_it_says(given: Any, meant: Filter | None) -> None:
    """Each written form of a filter stands for exactly one filter."""
    assert parse(given) == meant


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("room=hawaii", "key"),
        ({1: 2}, "strings"),
        ({"room": ["a", "b"]}, "in"),
        ({"room": None}, "is_empty"),
        ({"room": {}}, "=="),
        ({"room": {"$gte": 1}}, "'>='"),
        ({"room": {"like": "x"}}, "text_match"),
        ({"room": {"in": "hawaii"}}, "list"),
        ({"room": {"text_match": 3}}, "string"),
        ({"room": {">": None}}, "number"),
        ({"room": {">": [1]}}, "any"),
        ({"room": {"==": {"a": 1}}}, "JSON"),
        ({"room": object()}, "JSON"),
        ({"$and": {"a": 1}}, "$and"),
        ({"$or": []}, "at least one"),
        ({"$or": [{}]}, "Leave it out"),
        ({"$not": None}, "Leave it out"),
        ({"$nor": [{"a": 1}]}, "$not"),
        ({"room": {"exists": True}}, "is_empty"),
    ],
)
def test_nonsense_is_refused_with_a_hint(given: Any, hint: str) -> None:
    """What means nothing raises `InvalidFilter`, which says what to write instead."""
    with pytest.raises(InvalidFilter) as caught:
        parse(given)
    assert hint in caught.value.hint


def test_filters_are_made_of_filters_and_strings() -> None:
    """A part that is no filter, or a key that is no string, is refused where it is given."""
    with pytest.raises(InvalidFilter):
        And({"room": "hawaii"})  # type: ignore[arg-type]
    with pytest.raises(InvalidFilter):
        Not(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidFilter):
        Where(1, "==", 2)  # type: ignore[arg-type]


class Colour(StrEnum):
    """A string that is not of the type str."""

    RED = "red"


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00+00:00"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Colour.RED, "red"),
        (np.float32(1.5), 1.5),
        (np.array([1, 2]), (1, 2)),
    ],
)
def test_values_are_compared_as_json_holds_them(value: Any, stored: Any) -> None:
    """A value that JSON writes in its own way is compared in that way, as the record's metadata comes back."""
    assert Where("k", "==", value).value == stored
    held = orjson.loads(orjson.dumps({"k": value}, option=orjson.OPT_SERIALIZE_NUMPY))
    assert Where("k", "==", value).matches(held)


def test_the_operators_are_the_fourteen_of_llama_index() -> None:
    """The operators' names are LlamaIndex's, so that its filters translate one to one."""
    ordered = ["==", "!=", ">", "<", ">=", "<="]
    others = ["in", "nin", "any", "all", "text_match", "text_match_insensitive", "contains", "is_empty"]
    assert sorted(OPERATORS) == sorted([*ordered, *others])
