"""LlamaIndex on a pool: the stores that a LlamaIndex application needs, shared by any number of processes.

Each is built as `Class(pool, collection)`, where `pool` is a `Pool` or the path of one (created if it is not there), or
by `Class.from_params(path, collection, capacity=...)`. All take the same collection name without disturbing each other.
"""

from __future__ import annotations

try:
    import llama_index.core  # noqa: F401 (what all below needs)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("LlamaIndex is not installed: pip install 'sharedrag[llama-index]'", name=error.name) from None

from sharedrag.llama_index.chat_engine import SharedChatEngine
from sharedrag.llama_index.chat_store import SharedAsyncChatStore, SharedChatStore
from sharedrag.llama_index.document_store import SharedDocumentStore
from sharedrag.llama_index.embedding import SharedEmbedding, as_llama_index
from sharedrag.llama_index.index_store import SharedIndexStore
from sharedrag.llama_index.kv_store import SharedKVStore
from sharedrag.llama_index.vector_store import SharedVectorStore, UnsupportedQueryMode

__all__ = [
    "SharedAsyncChatStore",
    "SharedChatEngine",
    "SharedChatStore",
    "SharedDocumentStore",
    "SharedEmbedding",
    "SharedIndexStore",
    "SharedKVStore",
    "SharedVectorStore",
    "UnsupportedQueryMode",
    "as_llama_index",
]
