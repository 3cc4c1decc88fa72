"""From what a caller passes to the bytes that a segment stores: the one place where records are validated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import orjson

from sharedrag.arena.row import HAS_METADATA, HAS_TEXT, HAS_VECTOR, NORM_ONE, PUT, hash31
from sharedrag.errors import InvalidRecord

ID_BYTES_MAX = 64 * 1024
_NORM_TOLERANCE = 1e-6  # |v|^2 this near to 1 is a unit vector up to float32 rounding
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ONE_US = timedelta(microseconds=1)
_FIRST_US = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _ONE_US
_LAST_US = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _ONE_US
_EMPTY = b""
_NO_ITEMS: list[Any] = []  # what cannot be unpacked into one
_FLOAT32 = np.dtype(np.float32)
_new = tuple.__new__  # half the price of calling a NamedTuple


class Batch(NamedTuple):
    """Rows ready to be appended; all lists have one item per row, deletes first."""

    ids: list[bytes]
    hashes: list[int]
    texts: list[bytes]
    metadata: list[bytes]
    flags: list[int]
    created_us: list[int] | None  # None: the time of the append
    vectors: npt.NDArray[np.generic] | None  # (rows, dimension) as stored, C-contiguous; zeros where a row has none
    norm_bits: list[int] | None  # None: all 1.0

    @property
    def only_deletes(self) -> bool:
        """True for a batch that frees space rather than takes it."""
        return not any(flags & PUT for flags in self.flags)


def invalid(what: str, hint: str) -> InvalidRecord:
    """The error for a record that cannot be stored."""
    return InvalidRecord(what, operation="put", hint=hint)


def encode_id(given: object) -> bytes:
    """An id's UTF-8 bytes; raises `InvalidRecord` unless it is a str of 1 to 65,536 encodable bytes."""
    if not isinstance(given, str):
        raise invalid(f"id {given!r:.80} is a {type(given).__name__}", "Ids are strings")
    try:
        encoded = given.encode()
    except UnicodeEncodeError as error:
        raise invalid(f"id {given!r:.80} is not valid Unicode: {error.reason}", "Remove lone surrogates") from None
    if 0 < len(encoded) <= ID_BYTES_MAX:
        return encoded
    if not encoded:
        raise invalid("an id is empty", "Give each record an id of at least one character")
    raise invalid(
        f"an id has {len(encoded):,} bytes", f"Ids may have up to {ID_BYTES_MAX:,} bytes; keep the rest in metadata"
    )


def encode_ids(ids: Sequence[Any]) -> list[bytes]:
    """`encode_id` of each."""
    encoded = _plain_texts(ids)
    if encoded and _EMPTY not in encoded and max(map(len, encoded)) <= ID_BYTES_MAX:
        return encoded
    return [encode_id(one) for one in ids]


def _encode_text(text: object) -> bytes:
    if not isinstance(text, str):
        raise invalid(f"a text is a {type(text).__name__}", "Texts are strings or None")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise invalid(f"a text is not valid Unicode: {error.reason}", "Decode it with errors='replace' first") from None


def encode_metadata(metadata: object) -> bytes:
    """Metadata as JSON bytes; raises `InvalidRecord` unless it is a mapping of JSON values with string keys.

    datetime, date, time, UUID and enum values become strings as orjson writes them; NaN and infinity are refused.
    """
    if type(metadata) is not dict:
        if not isinstance(metadata, Mapping):
            raise invalid(f"metadata is a {type(metadata).__name__}", "Metadata is a dict or None")
        metadata = dict(metadata)
    try:
        encoded = orjson.dumps(metadata)
    except TypeError as error:
        raise invalid(
            f"metadata is not JSON: {error}", "Use strings, numbers, booleans, None, lists and dicts with string keys"
        ) from None
    if b"null" in encoded and _has_non_finite(metadata):  # orjson writes them as null
        raise invalid("metadata holds NaN or infinity", "JSON has no such numbers; use None or a string")
    return encoded


def _has_non_finite(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(_has_non_finite(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_non_finite(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return any(_has_non_finite(getattr(value, one.name)) for one in fields(value))
    return False


def microseconds(moment: object) -> int:
    """A moment in microseconds since 1970; a datetime without a zone is UTC. Raises `InvalidRecord`."""
    if not isinstance(moment, datetime):
        raise invalid(f"created is a {type(moment).__name__}", "Give a datetime, or one for each record")
    since_us = ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // _ONE_US
    if not _FIRST_US <= since_us <= _LAST_US:
        raise invalid(f"created {moment} is not within the years 1 to 9999 of UTC", "Give a moment that UTC can name")
    return since_us


def moment(created_us: int) -> datetime:
    """The UTC datetime of microseconds since 1970."""
    return _EPOCH + timedelta(0, 0, created_us)


def _items(given: Any, name: str, count: int) -> Sequence[Any]:
    if type(given) is list and len(given) == count:
        return given
    if isinstance(given, (str, bytes, Mapping)) or not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
        raise invalid(f"{name} is a {type(given).__name__}", f"{name} is a list with one item for each id")
    if len(given) != count:
        raise invalid(f"{count} ids, but {len(given)} {name}", "Give one for each id (None where a record has none)")
    return given  # type: ignore[no-any-return]


def as_vectors(given: Any, dimension: int, operation: str) -> npt.NDArray[np.float32]:
    """Vectors as a C-contiguous (n, dimension) float32 array; one vector may come without its row axis.

    Raises `InvalidRecord` for another shape or kind.
    """
    if isinstance(given, str):
        hint = "Embed it first (`model.embed_query(...)`), or search by its words with `text=`"
        raise InvalidRecord("a text where a vector belongs", operation=operation, hint=hint)
    try:
        array = np.asarray(given)
        if array.dtype != np.float32:
            if array.dtype.kind not in "fiub" and array.size:
                raise TypeError(f"they are {array.dtype}")  # text, complex numbers and dates would be converted in silence
            with np.errstate(over="ignore"):  # what becomes infinite is refused as such
                array = array.astype(np.float32)
        array = np.ascontiguousarray(array)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRecord(
            f"vectors are not numbers: {error}", operation=operation, hint=f"Give (n, {dimension}) float32"
        ) from None
    if array.shape == (dimension,):
        return array.reshape(1, dimension)
    if array.ndim != 2 or array.shape[1] != dimension:
        raise InvalidRecord(
            f"vectors have shape {array.shape}",
            operation=operation,
            hint=f"This collection takes (n, {dimension}); check the embedding model",
        )
    return array


def squared_norms(vectors: npt.NDArray[np.float32], metric: str, operation: str) -> npt.NDArray[np.float32]:
    """|v|^2 of each row, (n,) float32; raises `InvalidRecord` for NaN or infinity, and under cosine for zero vectors."""
    squares: npt.NDArray[np.float32] = np.einsum("ij,ij->i", vectors, vectors)
    finite = np.isfinite(squares)
    if not finite.all() and not np.isfinite(vectors).all():
        at = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise InvalidRecord(
            f"vector {at} holds NaN or infinity", operation=operation, hint="Check what the embedding model returned"
        )
    if not finite.all():
        at = int(np.flatnonzero(~finite)[0])
        raise InvalidRecord(f"vector {at} is too long for float32", operation=operation, hint="Scale it down")
    if metric == "cosine" and not squares.all():
        at = int(np.flatnonzero(squares == 0)[0])
        raise InvalidRecord(
            f"vector {at} is zero",
            operation=operation,
            hint="Cosine needs a direction; store that record without a vector",
        )
    return squares


def unit(
    vectors: npt.NDArray[np.float32], squares: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], list[int] | None]:
    """Unit vectors and the bits of the lengths they had; (the same array, None) if they were unit vectors already."""
    if bool((np.abs(squares - 1.0) <= _NORM_TOLERANCE).all()):
        return vectors, None
    norms = np.sqrt(squares)
    norms[np.abs(squares - 1.0) <= _NORM_TOLERANCE] = 1.0
    if not (norms > 1e-18).all():  # subnormal squares: measure in double precision
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1).astype(np.float32)
    return np.divide(vectors, norms[:, None], dtype=np.float32), norms.view(np.uint32).tolist()


def are_unit_vectors(vectors: npt.NDArray[np.float32]) -> bool:
    """True if all have length 1, as most do; they are finite then, and none is zero."""
    if len(vectors) != 1:
        squares = np.einsum("ij,ij->i", vectors, vectors)
        return bool((np.abs(squares - 1.0) <= _NORM_TOLERANCE).all())
    row = vectors[0]
    return -_NORM_TOLERANCE <= float(row.dot(row)) - 1.0 <= _NORM_TOLERANCE


def encode_one(
    ids: Any, vectors: Any, texts: Any, metadata: Any, dimension: int | None, metric: str, dtype: str
) -> Batch | None:
    """A put as most are, in one pass: one record of plain types with a unit vector; None where `encode` must decide."""
    flags, text, meta = PUT, _EMPTY, _EMPTY
    try:
        (one,) = ids if type(ids) is list else _NO_ITEMS
        encoded = str.encode(one)
        if texts is not None:
            (given,) = texts if type(texts) is list else _NO_ITEMS
            text = str.encode(given)
            flags |= HAS_TEXT
        if metadata is not None:
            (given,) = metadata if type(metadata) is list else _NO_ITEMS
            meta = orjson.dumps(given)
            flags |= HAS_METADATA
            if type(given) is not dict or b"null" in meta:
                return None
    except (TypeError, ValueError):
        return None
    if not 0 < len(encoded) <= ID_BYTES_MAX:
        return None
    if vectors is not None:
        if type(vectors) is not np.ndarray or vectors.dtype is not _FLOAT32 or vectors.shape != (1, dimension):
            return None
        row = vectors[0]
        if dtype != "float32" or not -_NORM_TOLERANCE <= float(row.dot(row)) - 1.0 <= _NORM_TOLERANCE:
            return None
        flags |= HAS_VECTOR
    hashed = hash31(encoded)
    return _new(Batch, ([encoded], [hashed], [text], [meta], [flags], None, vectors, None))


def _stored_vectors(
    given: Any, count: int, dimension: int | None, metric: str, dtype: str
) -> tuple[npt.NDArray[np.generic] | None, list[int] | None, list[bool] | None]:
    """(vectors as stored, norm bits, which rows have one or None for all)."""
    if dimension is None:
        raise invalid("vectors given to a collection without them", "Make the collection with dimension=...")
    present = None
    if isinstance(given, (list, tuple)) and any(item is None for item in given):
        _items(given, "vectors", count)
        present = [item is not None for item in given]
        if not any(present):
            return None, None, present
        rows = as_vectors([item for item in given if item is not None], dimension, "put")
        if len(rows) != sum(present):  # numbers where vectors were due; NumPy would repeat them
            raise invalid("a vector is a number", f"Give each of the {sum(present)} records with one a vector of its own")
        filled = np.zeros((count, dimension), np.float32)
        filled[present] = rows
        squares = np.ones(count, np.float32)
        squares[present] = squared_norms(filled[present], metric, "put")
        vectors = filled
    else:
        vectors = as_vectors(given, dimension, "put")
        if len(vectors) != count:
            _items(vectors, "vectors", count)  # raises
        if dtype == "float32" and are_unit_vectors(vectors):
            return vectors, None, None
        squares = squared_norms(vectors, metric, "put")
    norm_bits = None
    if metric == "cosine":
        vectors, norm_bits = unit(vectors, squares)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            halves = vectors.astype(np.float16)
        if not np.isfinite(halves).all():
            raise invalid("a vector does not fit float16 (beyond 65,504)", "Scale it down or use dtype='float32'")
        return halves, norm_bits, present
    return vectors, norm_bits, present


def _plain_texts(items: Sequence[Any]) -> list[bytes] | None:
    """The bytes of items that are all plain strings; None where each must be looked at."""
    try:
        return list(map(str.encode, items))
    except (TypeError, ValueError):
        return None


def _plain_metadata(items: Sequence[Any]) -> list[bytes] | None:
    """The JSON of items that are all plain dicts without nulls; None where each must be looked at."""
    try:
        encoded = list(map(orjson.dumps, items)) if set(map(type, items)) == {dict} else []
    except TypeError:
        return None
    return encoded if encoded and b"null" not in b"".join(encoded) else None


def _encoded(
    given: Any,
    name: str,
    count: int,
    flag: int,
    plain: Callable[[Sequence[Any]], list[bytes] | None],
    encode_any: Callable[[object], bytes],
) -> tuple[list[bytes], int | list[int]]:
    """Each item's bytes (empty for None), and the flag of each row: one int where it is the same for all."""
    if given is None:
        return [_EMPTY] * count, 0
    items = _items(given, name, count)
    common = plain(items)
    if common is not None:
        return common, flag
    encoded = [_EMPTY if one is None else encode_any(one) for one in items]
    if _EMPTY in encoded and any(one is None for one in items):
        return encoded, [0 if one is None else flag for one in items]
    return encoded, flag


def encode(
    ids: Sequence[str],
    vectors: Any,
    texts: Any,
    metadata: Any,
    created: Any,
    dimension: int | None,
    metric: str,
    dtype: str,
) -> Batch:
    """Validate and encode a batch of puts; raises `InvalidRecord` before anything is written."""
    count = len(ids)
    if count == 1 and created is None:
        single = encode_one(ids, vectors, texts, metadata, dimension, metric, dtype)
        if single is not None:
            return single
    encoded = encode_ids(_items(ids, "ids", count))
    hashes = [hash31(one) for one in encoded]
    text_bytes, has_text = _encoded(texts, "texts", count, HAS_TEXT, _plain_texts, _encode_text)
    metadata_bytes, has_metadata = _encoded(metadata, "metadata", count, HAS_METADATA, _plain_metadata, encode_metadata)
    stored, norm_bits, has_vector = None, None, cast("int | list[int]", 0)
    if vectors is not None and not count:
        _items(vectors, "vectors", count)
    elif vectors is not None:
        stored, norm_bits, present = _stored_vectors(vectors, count, dimension, metric, dtype)
        has_vector = HAS_VECTOR if present is None else [HAS_VECTOR if one else 0 for one in present]
    if isinstance(has_text, int) and isinstance(has_metadata, int) and isinstance(has_vector, int):
        flags = [PUT | has_text | has_metadata | has_vector] * count
    else:
        columns = [[one] * count if isinstance(one, int) else one for one in (has_text, has_metadata, has_vector)]
        flags = [PUT | sum(low) for low in zip(*columns, strict=True)]
    created_us = None
    if isinstance(created, datetime):
        created_us = [microseconds(created)] * count
    elif created is not None:
        created_us = [microseconds(one) for one in _items(created, "created", count)]
    return Batch(encoded, hashes, text_bytes, metadata_bytes, flags, created_us, stored, norm_bits)


def with_deletes(ids: Sequence[str], puts: Batch | None) -> Batch:
    """A batch that first deletes these ids, then does the puts, all in one."""
    encoded = encode_ids(ids)
    hashes = [hash31(one) for one in encoded]
    count = len(encoded)
    nothing = [_EMPTY] * count
    deletes = Batch(encoded, hashes, nothing, nothing, [0] * count, None, None, None)
    if puts is None:
        return deletes
    vectors, norm_bits, created_us = puts.vectors, puts.norm_bits, puts.created_us
    if vectors is not None:
        vectors = np.concatenate([np.zeros((count, vectors.shape[1]), vectors.dtype), vectors])
    return Batch(
        encoded + puts.ids,
        hashes + puts.hashes,
        nothing + puts.texts,
        nothing + puts.metadata,
        deletes.flags + puts.flags,
        None if created_us is None else created_us[:1] * count + created_us,
        vectors,
        None if norm_bits is None else [NORM_ONE] * count + norm_bits,
    )
