"""Columns of metadata: any filter answers over them as `Filter.matches` does row by row, whatever the metadata is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sharedrag.filters import OPERATORS, And, Created, Filter, Not, Or, Where
from sharedrag.search import columns_build, columns_lanes, columns_layout
from sharedrag.search.columns import Columns
from sharedrag.search.columns_build import encode
from sharedrag.search.columns_rows import Object, Rows
from tests.test_filters import KEYS, SCALARS, STRINGS

LARGE: list[Any] = [
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
    -(2**53) - 1,
    2.0**63,
    2.0**53,
    5e-324,
    -1.5,
    127,
    200,
    70000,
]
#: What a filter may be given, but no record holds.
BEYOND: list[Any] = [
    2**64,
    -(2**70),
    10**400,
    -(10**400),
    math.inf,
    -math.inf,
    math.nan,
    "\ud800",
    "\udfffx",
    "ZZ",
    "İ".lower(),
]
LONG = ["Long text " * 30, "long TEXT" * 40 + "Σ"]

values = st.one_of(
    st.sampled_from([*SCALARS, *LARGE, *LONG]),
    st.none(),
    st.lists(st.one_of(st.sampled_from([*SCALARS, *LARGE]), st.none()), max_size=3),
    st.lists(st.lists(st.sampled_from(SCALARS), max_size=2), max_size=2),
    st.dictionaries(st.sampled_from(KEYS), st.sampled_from(SCALARS), max_size=2),
    st.text(max_size=3),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)
records = st.lists(st.dictionaries(st.sampled_from(KEYS[:4]), values, max_size=4), max_size=24)
asked = st.one_of(st.sampled_from([*SCALARS, *LARGE, *BEYOND, *LONG]), st.text(max_size=2), st.integers(), st.floats())
asked_lists = st.lists(st.one_of(asked, st.none(), st.lists(st.sampled_from(SCALARS), max_size=2)), max_size=10)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _leaves() -> st.SearchStrategy[Filter]:
    keys = st.sampled_from(KEYS[:5])
    moments = st.integers(-1, 5).map(lambda us: EPOCH + timedelta(microseconds=us))
    return st.one_of(
        st.builds(Where, keys, st.sampled_from(["==", "!=", "contains"]), st.one_of(asked, st.none(), asked_lists)),
        st.builds(Where, keys, st.sampled_from([">", "<", ">=", "<="]), asked),
        st.builds(Where, keys, st.sampled_from(["in", "nin", "any", "all"]), asked_lists),
        st.builds(
            Where, keys, st.sampled_from(["text_match", "text_match_insensitive"]), st.sampled_from([*STRINGS, "TEXT"])
        ),
        st.builds(Where, keys, st.just("is_empty")),
        st.builds(Created, st.sampled_from(["==", "!=", ">", "<", ">=", "<="]), moments),
    )


filters = st.recursive(
    _leaves(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: And(*parts)),
        st.lists(inner, max_size=3).map(lambda parts: Or(*parts)),
        st.builds(Not, inner),
    ),
    max_leaves=6,
)


class InMemory:
    """Rows that lie in no segment, each created at its number modulo 4; counts those that are looked at."""

    start = 0

    def __init__(self, given: list[Object]) -> None:
        self.rows = [cast(Object, orjson.loads(orjson.dumps(one))) for one in given]
        self.stop = len(given)
        self.looked = 0

    def created(self) -> npt.NDArray[np.int64]:
        """As `Rows.created`."""
        return np.arange(self.stop) % 4

    def look(self, rows: npt.NDArray[np.int64], wanted: Filter) -> npt.NDArray[np.bool_]:
        """As `Rows.look`."""
        self.looked += len(rows)
        return np.array([wanted.matches(self.rows[row], row % 4) for row in rows.tolist()], np.bool_)

    def columns(self, chunk: int = 8192) -> Columns:
        """Their block, open."""
        created = self.created()
        span = (int(created.min()), int(created.max())) if len(created) else (0, -1)
        payload = encode((self.rows[at : at + chunk] for at in range(0, self.stop, chunk)), span)
        return Columns.open(np.frombuffer(payload, np.uint8))

    def matching(self, wanted: Filter, columns: Columns) -> list[int]:
        """The rows that match by their columns."""
        return np.flatnonzero(columns.mask(wanted, cast(Rows, self))).tolist()

    def expected(self, wanted: Filter) -> list[int]:
        """The rows that match one by one."""
        return [row for row, one in enumerate(self.rows) if wanted.matches(one, row % 4)]


def _small_limits(patch: pytest.MonkeyPatch) -> None:
    """Every way that is otherwise for large columns."""
    patch.setattr(columns_lanes, "_FEW_TEXTS", 0)
    patch.setattr(columns_lanes, "_FEW_RUNS", 0)
    patch.setattr(columns_build, "_TEXT_BYTES_FREE", 40)
    patch.setattr(columns_build, "_TEXT_BYTES_A_ROW", 8)
    patch.setattr(columns_build, "KEYS_MAX", 2)


def _colliding(patch: pytest.MonkeyPatch) -> None:
    """Names and values share their digests, and nothing is common enough for lanes."""
    patch.setattr(columns_layout, "_digest", lambda text: 2000 + len(text) % 2)
    patch.setattr(columns_build, "_KEY_SHARE", 3)
    patch.setattr(columns_build, "_TEXT_BYTES_FREE", 0)
    patch.setattr(columns_build, "_TEXT_BYTES_A_ROW", 0)


def _sparse(patch: pytest.MonkeyPatch) -> None:
    """All lanes list their rows."""
    patch.setattr(columns_build, "_DENSE_SHARE", 0)


@pytest.fixture(
    params=[lambda patch: None, _small_limits, _colliding, _sparse], ids=["usual", "limits", "digests", "sparse"]
)
def layout(request: pytest.FixtureRequest) -> Iterator[None]:
    """The block's choices, each for good."""
    with pytest.MonkeyPatch.context() as patch:
        cast(Callable[[pytest.MonkeyPatch], None], request.param)(patch)
        yield


@pytest.mark.usefixtures("layout")
class TestAgreement:
    @settings(max_examples=250, deadline=None)
    @given(records, st.lists(filters, min_size=1, max_size=4), st.integers(1, 30))
    @example([{"a": 2**53 + 1}, {"a": 2.0**53}, {"a": True}, {"a": 1.0}], [Where("a", ">", 2.0**53), Where("a", "==", 1)], 9)
    @example([{"a": "x"}, {"a": "x"}, {"a": "y"}, {"a": "y"}], [And(Where("a", "==", "x"), Where("room", "is_empty"))], 2)
    def test_columns_answer_as_rows_do(self, given_records: list[Object], wanted: list[Filter], chunk: int) -> None:
        """Any tree of filters over any metadata, with nulls, lists, dicts, mixed and huge values, agrees with `matches`."""
        rows = InMemory(given_records)
        columns = rows.columns(chunk)
        assert columns.rows == len(given_records)
        for one in wanted:
            assert rows.matching(one, columns) == rows.expected(one)

    def test_every_operator_on_every_kind(self) -> None:
        """Each operator with each value, on a column of each kind alone and on all kinds mixed."""
        texts = [text for text in STRINGS if len(text) < 9]
        kinds: dict[str, list[Any]] = {
            "ints": [0, 1, -1, 127, 128, -129, 40000, 2**40, 2**63 - 1, -(2**63), True, False, None],
            "floats": [0.0, 0.5, -1.5, 1e300, 2.0**53, 5e-324, None],
            "numbers": [0, 1, 2, 0.5, 1.5, 2.0, True, 2**53, None],
            "texts": [*texts, *STRINGS, None],
            "lists": [[], [1], [True, 1.0], ["a", None], ["a", "b"], [None], [0.5, "ab", 3], [], None],
            "odd": [2**63, [[1], "a"], {"a": 1}, {"b": None}, {}, [{"a": 1}], *LONG, "", []],
        }
        kinds["mixed"] = [value for several in kinds.values() for value in several]
        wanted: list[Any] = [
            *SCALARS[:6],
            *LARGE,
            0,
            1,
            0.5,
            True,
            2**63,
            2**64,
            1.5,
            *BEYOND,
            None,
            (),
            (1,),
            ("a",),
            ("a", "b"),
            ("a", None),
        ]
        wanted += [(1, 0.5, "a", None), (2**63, ("a",), ())]
        for values_held in kinds.values():
            rows = InMemory([{"k": value} for value in values_held for _ in range(3)] + [{}])
            columns = rows.columns(50)
            for op in OPERATORS:
                for value in wanted:
                    takes_list = op in ("in", "nin", "any", "all")
                    takes_text = op.startswith("text_match")
                    if takes_list != isinstance(value, tuple) and op not in ("==", "!=", "contains"):
                        continue
                    if (takes_text and not isinstance(value, str)) or (op in ("<", ">", "<=", ">=") and value is None):
                        continue
                    one = Where("k", op, value)
                    assert rows.matching(one, columns) == rows.expected(one), one


def test_only_what_columns_cannot_tell_is_looked_at() -> None:
    """Plain values, texts and lists need no row; a rare key, long texts and dicts need only the rows that may match."""
    rows = InMemory(
        [{"n": row, "t": f"t{row % 50}", "l": [row % 7], "long": f"{row} " * 60, "d": {"x": row}} for row in range(4000)]
    )
    rows.rows[7]["rare"] = 1
    columns = rows.columns()
    cases: list[tuple[Filter, int]] = [
        (Where("n", ">", 10), 0),
        (Where("t", "text_match", "9"), 0),
        (Not(Where("l", "contains", 3)), 0),
        (Where("long", "==", "7 " * 60), 1),
        (Where("long", "in", ["7 " * 60, "8 " * 60, "no"]), 2),
        (Where("long", "is_empty"), 0),
        (Where("d", "is_empty"), 0),
        (Where("rare", ">", 0), 1),
        (And(Where("d", "contains", "x"), Where("n", "<", 5)), 5),
        (Or(Where("d", "contains", "y"), Where("n", "<", 3990)), 10),
        (Where("nowhere", "!=", 1), 0),
    ]
    for one, looked in cases:
        rows.looked = 0
        assert rows.matching(one, columns) == rows.expected(one)
        assert rows.looked == looked, one


def test_names_are_bounded() -> None:
    """A segment with more key names than there may be columns still answers for each of them."""
    rows = InMemory([{f"key{row % 700}": row, f"once{row}": "x"} for row in range(2100)])
    columns = rows.columns(1400)
    for name in ("key0", "key699", "once5", "key700"):
        for one in (Where(name, ">=", 700), Where(name, "is_empty"), Where(name, "==", "x")):
            assert rows.matching(one, columns) == rows.expected(one)


def test_a_block_is_small() -> None:
    """A room, an author and a time stamp take fewer bytes than their JSON: 7 to 8 B a row."""
    rows = InMemory(
        [{"room": f"room{row % 8}", "author": f"author{row % 30}", "ts": 1_790_000_000 + row} for row in range(20000)]
    )
    assert rows.columns().size < 8 * 20000


def test_a_block_says_what_it_is() -> None:
    """Another format or version, or a cut block, is refused; arrays lie 64-byte aligned and are not copied."""
    rows = InMemory([{"a": row, "b": str(row)} for row in range(100)])
    payload = np.frombuffer(encode([rows.rows], (3, 9)), np.uint8)
    columns = Columns.open(payload)
    assert (columns.rows, columns.created, columns.size) == (100, (3, 9), len(payload))
    for entry in orjson.loads(payload[columns_layout.HEADER.unpack(payload[:64].tobytes())[5] :].tobytes().rstrip(b"\0"))[
        "columns"
    ]["b"]:
        _, at, count = entry["codes"]
        assert at % 64 == 0 and count == 100
    texts = columns._column("b")
    assert texts is not None and np.shares_memory(cast(Any, texts)._lanes[0]._codes, payload)
    for broken in (
        b"",
        payload[:40].tobytes(),
        b"XXXX" + payload[4:].tobytes(),
        payload[:-64].tobytes(),
        b"SCOL\x02" + payload[5:].tobytes(),
    ):
        with pytest.raises(ValueError, match="columns block"):
            Columns.open(np.frombuffer(broken, np.uint8))
