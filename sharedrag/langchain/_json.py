"""Python values as the JSON text that a record holds, and back."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from sharedrag import InvalidRecord


def dumps(value: Any) -> str:
    """JSON text of `value`; datetimes, UUIDs, sets and pydantic models as pydantic writes them.

    Raises `InvalidRecord` for what JSON cannot express.
    """
    try:
        text = json.dumps(value, default=to_jsonable_python, ensure_ascii=False)
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:  # a lone surrogate, as a stream that was cut leaves it
                text = json.dumps(value, default=to_jsonable_python)
    except (TypeError, ValueError, PydanticSerializationError) as error:
        raise InvalidRecord(
            f"a value is not JSON: {error}", operation="put", hint="Use strings, numbers, booleans, None, lists and dicts"
        ) from None
    return text


def loads(text: str) -> Any:
    """The value of a text that `dumps` wrote: a fresh one each time."""
    return json.loads(text)
