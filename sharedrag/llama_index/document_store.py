"""Document store: what is known of a document is derived from one record per node, never read, changed and put back.

| record | id | text | metadata |
| --- | --- | --- | --- |
| document | `d:<id>` | the node as core's `doc_to_json` | `kind` |
| info | `i:<id>` | the node's metadata, if it has a source document | `kind`, `hash`, `ref`, `first`, `batch` |
| hash | `h:<id>` | - | `kind`, `hash`: set by `set_document_hash`, stands before the info's |

The nodes of a source document are the infos that name it as `ref`, in the order of `first`: a list kept somewhere would
lose ids whenever two processes add to it at once. One call adds, or deletes, all its records in one batch, which others
see whole or not at all; a kernel lock orders the calls that write, so that `allow_update=False` and "delete the
document with its last node" hold across processes too. Reads take no lock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from llama_index.core.schema import BaseNode
from llama_index.core.storage.docstore.keyval_docstore import (
    DEFAULT_COLLECTION_DATA_SUFFIX,
    DEFAULT_METADATA_COLLECTION_SUFFIX,
    DEFAULT_NAMESPACE,
    DEFAULT_REF_DOC_COLLECTION_SUFFIX,
)
from llama_index.core.storage.docstore.types import BaseDocumentStore, RefDocInfo
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc

from sharedrag import Collection, Record
from sharedrag.filters import And, Filter, Not, Or, Where
from sharedrag.llama_index._json import dumps, loads
from sharedrag.llama_index._pools import OnPool, PoolLike, as_pool

_DOCUMENTS = Where("kind", "==", "document")
_INFOS = Where("kind", "==", "info")
_HASHES = Where("kind", "==", "hash")
_NODES = And(_INFOS, Not(Where("ref", "is_empty")))


class SharedDocumentStore(OnPool, BaseDocumentStore):
    """LlamaIndex's document store on a pool: `SharedDocumentStore(pool_or_path, "documents")`.

    Answers as core's `KVDocumentStore` does. It stays right when several processes add to and delete from one document
    at once; the asynchronous forms run the same code in a thread. Nothing needs `persist`: the pool is the storage.
    """

    def __init__(self, pool: PoolLike, collection: str = "default") -> None:
        """`pool` is a `Pool`, or the path of one, which is created if it is not there."""
        self.pool = as_pool(pool)
        self.collection = collection

    def _records(self) -> Collection:
        return self.pool.collection(f"{self.collection}.documents")

    def _writing(self) -> AbstractContextManager[Any]:
        return self.pool.exclusive(f"{self.collection}.documents")

    # ------------------------------------------------------------------ documents

    @property
    def docs(self) -> dict[str, BaseNode]:
        """All documents by id."""
        return {record.id[2:]: _document(record) for record in self._records().find(_DOCUMENTS)}

    def add_documents(
        self,
        docs: Sequence[BaseNode],
        allow_update: bool = True,
        batch_size: int | None = None,
        store_text: bool = True,
    ) -> None:
        """Add all nodes, their hashes and their places in their source documents, in one transaction.

        Raises ValueError if a node is there and `allow_update` is off. Without `store_text` all but the nodes
        themselves is stored. `batch_size` is accepted and not needed: smaller ones would be slower, and seen in part.
        """
        nodes = list({node.node_id: node for node in docs}.values())
        documents = [dumps(doc_to_json(node)) for node in nodes] if store_text else []
        infos: list[dict[str, Any]] = [{"kind": "info", "hash": node.hash} for node in nodes]
        own_metadata = [dumps(node.metadata) if node.ref_doc_id else None for node in nodes]
        ids = [_id("d", node.node_id) for node in nodes[: len(documents)]] + [_id("i", node.node_id) for node in nodes]
        with self._writing():
            records = self._records()
            if not allow_update:
                self._refuse_known(nodes)
            known = records.get([_id("i", node.node_id) for node in nodes])
            overrides = records.get([_id("h", node.node_id) for node in nodes])
            batch = time.time_ns()
            for place, (node, info, before) in enumerate(zip(nodes, infos, known, strict=True)):
                info |= {"first": before.metadata["first"] if before else batch + place, "batch": batch}
                info |= {"ref": node.ref_doc_id} if node.ref_doc_id else {}
            records.put(
                ids,
                texts=[*documents, *own_metadata],
                metadata=[*[{"kind": "document"}] * len(documents), *infos],
                delete=[one.id for one in overrides if one is not None],
            )

    def _refuse_known(self, nodes: Sequence[BaseNode]) -> None:
        for node in nodes:
            if self.document_exists(node.node_id):
                raise ValueError(f"node_id {node.node_id} already exists. Set allow_update to True to overwrite.")

    def get_document(self, doc_id: str, raise_error: bool = True) -> BaseNode | None:
        """The document, or None; ValueError instead of None if `raise_error` is set."""
        record = self._records().get([_id("d", doc_id)])[0]
        if record is not None:
            return _document(record)
        if raise_error:
            raise ValueError(f"doc_id {doc_id} not found.")
        return None

    def get_nodes(self, node_ids: list[str], raise_error: bool = True) -> list[BaseNode]:
        """The nodes in the order of the ids, in one read; missing ones raise ValueError, or are left out."""
        found = self._records().get([_id("d", node_id) for node_id in node_ids])
        missing = [node_id for node_id, record in zip(node_ids, found, strict=True) if record is None]
        if missing and raise_error:
            raise ValueError(f"doc_id {missing[0]} not found.")
        return [_document(record) for record in found if record is not None]

    def document_exists(self, doc_id: str) -> bool:
        """Whether the document itself is stored."""
        return _id("d", doc_id) in self._records()

    def delete_document(self, doc_id: str, raise_error: bool = True) -> None:
        """Delete a node and all that is known of it; with the last node of a source document also that document.

        Raises ValueError if nothing was known of it and `raise_error` is set.
        """
        with self._writing():
            records = self._records()
            doomed = _existing(records, [doc_id])
            if not doomed and raise_error:
                raise ValueError(f"doc_id {doc_id} not found.")
            ref = next((one.metadata.get("ref") for one in doomed if one.metadata["kind"] == "info"), None)
            if ref is not None and self._node_ids(ref) == [doc_id]:
                doomed += _existing(records, [ref])
            records.delete([record.id for record in doomed])

    # ------------------------------------------------------------------ hashes

    def set_document_hash(self, doc_id: str, doc_hash: str) -> None:
        """Set the hash of one document, which need not be stored."""
        self.set_document_hashes({doc_id: doc_hash})

    def set_document_hashes(self, doc_hashes: dict[str, str]) -> None:
        """Set the hashes of documents by id, in one batch."""
        metadata = [{"kind": "hash", "hash": doc_hash} for doc_hash in doc_hashes.values()]
        self._records().put([_id("h", doc_id) for doc_id in doc_hashes], metadata=metadata)

    def get_document_hash(self, doc_id: str) -> str | None:
        """The document's hash, or None."""
        override, info = self._records().get([_id("h", doc_id), _id("i", doc_id)])
        record = override or info
        return None if record is None else record.metadata["hash"]

    def get_all_document_hashes(self) -> dict[str, str]:
        """Document ids by hash; of documents with the same hash, one."""
        return {doc_hash: doc_id for doc_id, doc_hash in self._all_hashes().items() if doc_hash}

    def get_all_document_ids(self) -> set[str]:
        """The ids of all documents that have a hash, also of those that share one."""
        return {doc_id for doc_id, doc_hash in self._all_hashes().items() if doc_hash}

    def _all_hashes(self) -> dict[str, str]:
        known = self._records().find(Or(_INFOS, _HASHES))  # in one look: a hash set apart may go as an info comes
        known.sort(key=lambda record: record.metadata["kind"] == "hash")
        return {record.id[2:]: record.metadata["hash"] for record in known}

    # ------------------------------------------------------------------ source documents

    def get_ref_doc_info(self, ref_doc_id: str) -> RefDocInfo | None:
        """The ids of the source document's nodes and its metadata, or None if it has no node."""
        infos = self._infos(Where("ref", "==", ref_doc_id))
        return _ref_doc_info(infos) if infos else None

    def get_all_ref_doc_info(self) -> dict[str, RefDocInfo]:
        """`get_ref_doc_info` of every source document that has nodes, by its id."""
        by_ref: dict[str, list[Record]] = {}
        for record in self._infos(_NODES):
            by_ref.setdefault(record.metadata["ref"], []).append(record)
        return {ref: _ref_doc_info(infos) for ref, infos in by_ref.items()}

    def ref_doc_exists(self, ref_doc_id: str) -> bool:
        """Whether a node of this source document is stored."""
        return bool(self._node_ids(ref_doc_id))

    def delete_ref_doc(self, ref_doc_id: str, raise_error: bool = True) -> None:
        """Delete a source document and all its nodes, in one transaction.

        Raises ValueError if it has no nodes and `raise_error` is set.
        """
        with self._writing():
            node_ids = self._node_ids(ref_doc_id)
            if node_ids:
                records = self._records()
                records.delete([record.id for record in _existing(records, [*node_ids, ref_doc_id])])
            elif raise_error:
                raise ValueError(f"ref_doc_id {ref_doc_id} not found.")

    def _infos(self, condition: Filter) -> list[Record]:
        return sorted(self._records().find(condition), key=lambda record: record.metadata["first"])

    def _node_ids(self, ref_doc_id: str) -> list[str]:
        return [record.id[2:] for record in self._infos(Where("ref", "==", ref_doc_id))]

    # ------------------------------------------------------------------ export

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """All contents as `SimpleDocumentStore.from_dict` takes them, for an export out of the pool."""
        refs = self.get_all_ref_doc_info()
        metadata: dict[str, Any] = {doc_id: {"doc_hash": doc_hash} for doc_id, doc_hash in self._all_hashes().items()}
        for ref, info in refs.items():
            for node_id in info.node_ids:
                metadata[node_id]["ref_doc_id"] = ref
        return {
            DEFAULT_NAMESPACE + DEFAULT_COLLECTION_DATA_SUFFIX: {key: doc_to_json(one) for key, one in self.docs.items()},
            DEFAULT_NAMESPACE + DEFAULT_METADATA_COLLECTION_SUFFIX: metadata,
            DEFAULT_NAMESPACE + DEFAULT_REF_DOC_COLLECTION_SUFFIX: {ref: one.to_dict() for ref, one in refs.items()},
        }

    # ------------------------------------------------------------------ the same in a thread

    async def async_add_documents(
        self,
        docs: Sequence[BaseNode],
        allow_update: bool = True,
        batch_size: int | None = None,
        store_text: bool = True,
    ) -> None:
        """`add_documents` in a thread."""
        await asyncio.to_thread(self.add_documents, docs, allow_update, batch_size, store_text)

    async def aget_document(self, doc_id: str, raise_error: bool = True) -> BaseNode | None:
        """`get_document` in a thread."""
        return await asyncio.to_thread(self.get_document, doc_id, raise_error)

    async def aget_nodes(self, node_ids: list[str], raise_error: bool = True) -> list[BaseNode]:
        """`get_nodes` in a thread."""
        return await asyncio.to_thread(self.get_nodes, node_ids, raise_error)

    async def adocument_exists(self, doc_id: str) -> bool:
        """`document_exists` in a thread."""
        return await asyncio.to_thread(self.document_exists, doc_id)

    async def adelete_document(self, doc_id: str, raise_error: bool = True) -> None:
        """`delete_document` in a thread."""
        await asyncio.to_thread(self.delete_document, doc_id, raise_error)

    async def aset_document_hash(self, doc_id: str, doc_hash: str) -> None:
        """`set_document_hash` in a thread."""
        await asyncio.to_thread(self.set_document_hash, doc_id, doc_hash)

    async def aset_document_hashes(self, doc_hashes: dict[str, str]) -> None:
        """`set_document_hashes` in a thread."""
        await asyncio.to_thread(self.set_document_hashes, doc_hashes)

    async def aget_document_hash(self, doc_id: str) -> str | None:
        """`get_document_hash` in a thread."""
        return await asyncio.to_thread(self.get_document_hash, doc_id)

    async def aget_all_document_hashes(self) -> dict[str, str]:
        """`get_all_document_hashes` in a thread."""
        return await asyncio.to_thread(self.get_all_document_hashes)

    async def aget_all_document_ids(self) -> set[str]:
        """`get_all_document_ids` in a thread."""
        return await asyncio.to_thread(self.get_all_document_ids)

    async def aget_ref_doc_info(self, ref_doc_id: str) -> RefDocInfo | None:
        """`get_ref_doc_info` in a thread."""
        return await asyncio.to_thread(self.get_ref_doc_info, ref_doc_id)

    async def aget_all_ref_doc_info(self) -> dict[str, RefDocInfo]:
        """`get_all_ref_doc_info` in a thread."""
        return await asyncio.to_thread(self.get_all_ref_doc_info)

    async def aref_doc_exists(self, ref_doc_id: str) -> bool:
        """`ref_doc_exists` in a thread."""
        return await asyncio.to_thread(self.ref_doc_exists, ref_doc_id)

    async def adelete_ref_doc(self, ref_doc_id: str, raise_error: bool = True) -> None:
        """`delete_ref_doc` in a thread."""
        await asyncio.to_thread(self.delete_ref_doc, ref_doc_id, raise_error)


def _id(kind: str, doc_id: str) -> str:
    return f"{kind}:{doc_id}"


def _document(record: Record) -> BaseNode:
    return json_to_doc(loads(record.text or "null"))


def _existing(records: Collection, doc_ids: Iterable[str]) -> list[Record]:
    """All records about these documents."""
    return [one for one in records.get([_id(kind, doc_id) for doc_id in doc_ids for kind in "dih"]) if one is not None]


def _ref_doc_info(infos: list[Record]) -> RefDocInfo:
    """The fold of one source document's infos, given in the order of `first`.

    Its metadata is that of the nodes which the earliest call with any metadata added, the later node's value for a key.
    """
    batches: dict[int, dict[str, Any]] = {}
    for record in infos:
        batches.setdefault(record.metadata["batch"], {}).update(loads(record.text or "{}"))
    metadata = next((batches[batch] for batch in sorted(batches) if batches[batch]), {})
    return RefDocInfo(node_ids=[record.id[2:] for record in infos], metadata=metadata)
