"""LlamaIndex nodes as records of a collection, and back.

| part of a record | what of a node |
| --- | --- |
| id, vector | `node_id`, `embedding` |
| text | the text |
| metadata | the node's own metadata, so that filters see it, and three keys of ours: |
| ... `ref_doc_id` | the id of the source document; left out where there is none |
| ... `_node_type` | the class name |
| ... `_node` | the other fields, defaults left out; also its `metadata`, should that have one of our keys |

So text and metadata are stored once, where core's helper stores them twice, and a node is built by its own class from
fields that are already decoded. A type that core does not know is built by core's helper, as it would be anywhere else.
A record without `_node` was put by somebody who does not use LlamaIndex: it is read as a `TextNode`.
"""

from __future__ import annotations

import json
from typing import Any

from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MetadataMode,
    Node,
    TextNode,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node

from sharedrag.llama_index._json import jsonable

REF_DOC_ID = "ref_doc_id"
NODE_TYPE = "_node_type"
NODE = "_node"
_OURS = (REF_DOC_ID, NODE_TYPE, NODE)
_ELSEWHERE = {"id_", "embedding", "metadata"}
_KNOWN: dict[str, type[BaseNode]] = {
    one.class_name(): one for one in (TextNode, Node, IndexNode, ImageNode, Document, ImageDocument)
}
OBJECT_TYPES = frozenset({IndexNode.class_name(), ImageNode.class_name()})


def node_to_record(node: BaseNode) -> tuple[str | None, dict[str, Any]]:
    """(text, metadata) of the record that holds `node`."""
    known = _KNOWN.get(node.class_name()) is type(node)
    text_field = known and isinstance(node, TextNode)
    # For documents the serializer adds `text` to the fields: a copy of what `text_resource` has.
    dropped = _ELSEWHERE | {"text"} if text_field or isinstance(node, Document) else _ELSEWHERE
    fields = node.model_dump(exclude=dropped, exclude_defaults=True)
    fields.pop("class_name", None)
    text = node.text if isinstance(node, TextNode) else _take_text(fields) if known else node.get_content(MetadataMode.NONE)
    metadata = dict(node.metadata)
    if not metadata.keys().isdisjoint(_OURS):
        fields["metadata"] = dict(metadata)  # whole, since a node's hash depends on the order of its keys
        metadata = {key: value for key, value in metadata.items() if key not in _OURS}
    if node.ref_doc_id is not None:
        metadata[REF_DOC_ID] = node.ref_doc_id
    metadata[NODE_TYPE] = node.class_name()
    metadata[NODE] = fields
    return text, jsonable(metadata)


def _take_text(fields: dict[str, Any]) -> str | None:
    resource = fields.get("text_resource")
    return None if resource is None else resource.pop("text", None)


def record_to_node(
    node_id: str, text: str | None, metadata: dict[str, Any], embedding: list[float] | None = None
) -> BaseNode:
    """The node that a record holds; `metadata` is not changed."""
    own = dict(metadata)
    fields: dict[str, Any] | None = own.pop(NODE, None)
    if fields is None:
        return TextNode(id_=node_id, text=text or "", metadata=own, embedding=embedding)
    class_name = own.pop(NODE_TYPE, "")
    own.pop(REF_DOC_ID, None)
    fields = {"metadata": own, **fields, "id_": node_id, "embedding": embedding}
    known = _KNOWN.get(class_name)
    if known is None:
        content = {"_node_content": json.dumps(fields), "_node_type": class_name}
        return metadata_dict_to_node(content, text)
    if issubclass(known, TextNode):
        fields["text"] = text or ""
        return known(**fields) if known is TextNode else known.from_dict(fields)
    if text is not None:
        fields["text_resource"] = {**(fields.get("text_resource") or {}), "text": text}
    return known.from_dict(fields)
