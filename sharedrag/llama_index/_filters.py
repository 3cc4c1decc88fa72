"""LlamaIndex's `MetadataFilters` as filters of our own: one to one, nested as they are."""

from __future__ import annotations

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from sharedrag.filters import And, Filter, Not, Or, Where
from sharedrag.llama_index._nodes import REF_DOC_ID

# Core writes a node's source document into its metadata under three names; we keep one.
_SAME = {"doc_id": REF_DOC_ID, "document_id": REF_DOC_ID}
_LISTS = (FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY, FilterOperator.ALL)


def to_filter(given: MetadataFilters | None) -> Filter | None:
    """The filter that means the same; None for None and for empty filters, which filter nothing.

    AND is also what no condition means; NOT means that none of the filters match. Raises `InvalidFilter`.
    """
    if given is None:
        return None
    parts = [part for part in map(_to_part, given.filters) if part is not None]
    if not parts:
        return None
    if given.condition == FilterCondition.OR:
        return Or(*parts)
    if given.condition == FilterCondition.NOT:
        return Not(Or(*parts))
    return parts[0] if len(parts) == 1 else And(*parts)


def _to_part(given: MetadataFilter | MetadataFilters) -> Filter | None:
    if isinstance(given, MetadataFilters):
        return to_filter(given)
    value = given.value
    if given.operator in _LISTS and not isinstance(value, list):
        value = [] if value is None else [value]  # type: ignore[assignment]
    return Where(_SAME.get(given.key, given.key), given.operator.value, value)
