"""Python values as the JSON text that the pool stores, and back.

What JSON has no word for is written as LlamaIndex and pydantic would: datetimes, dates and UUIDs as strings, enums by
value, sets and tuples as lists, numpy numbers and arrays as numbers and lists, keys as strings. It comes back as that.
Three things that orjson would refuse or change (integers beyond 64 bits, lone surrogates, NaN and infinity) are kept
by the standard library's JSON; a leading space marks its texts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import orjson
from pydantic_core import PydanticSerializationError, to_jsonable_python

from sharedrag.errors import InvalidRecord

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
_MARK = " "


def dumps(value: Any) -> str:
    """JSON text of `value`; raises `InvalidRecord` for what JSON cannot express at all."""
    try:
        encoded = orjson.dumps(value, default=to_jsonable_python, option=_OPTIONS)
        if b"null" not in encoded or not _has_non_finite(value):
            return encoded.decode()
    except TypeError:
        pass  # the standard library tells what it really is
    try:
        return _MARK + json.dumps(value, default=to_jsonable_python)
    except (TypeError, ValueError, PydanticSerializationError) as error:
        raise InvalidRecord(
            f"a value is not JSON: {error}",
            operation="put",
            hint="Use strings, numbers, booleans, None, lists and dicts",
        ) from None


def loads(text: str) -> Any:
    """The value of a text that `dumps` wrote: a fresh one each time."""
    return json.loads(text) if text.startswith(_MARK) else orjson.loads(text)


def jsonable(value: dict[str, Any]) -> dict[str, Any]:
    """`value` itself if orjson can write it as it is, else the nearest that it can write.

    What is left as it is though nothing can write it, is refused by the collection's `put`, which says why.
    """
    try:
        orjson.dumps(value)
    except TypeError:
        try:
            plain: dict[str, Any] = orjson.loads(orjson.dumps(value, default=to_jsonable_python, option=_OPTIONS))
        except TypeError:
            return value
        return plain
    return value


def _has_non_finite(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_has_non_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return _any_non_finite(value)
    return False


def _any_non_finite(values: Iterable[Any]) -> bool:
    try:
        return not all(map(math.isfinite, values))  # an embedding's numbers, at C speed
    except TypeError:
        return any(map(_has_non_finite, values))
