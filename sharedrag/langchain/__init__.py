"""LangChain on a pool: a vector store, key-value stores and a chat history that any number of processes share.

Each is built as `Class(pool, collection, ...)`, where `pool` is a `Pool` or the path of one, which is created if it is not
there. All can be pickled, and cross `fork`. All may take the same collection name without disturbing each other.
"""

from __future__ import annotations

try:
    import langchain_core  # noqa: F401 (what all below needs)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("LangChain is not installed: pip install 'sharedrag[langchain]'", name=error.name) from None

from sharedrag.langchain.embedding import SharedRagEmbeddings
from sharedrag.langchain.history import SharedRagChatMessageHistory
from sharedrag.langchain.store import SharedRagByteStore, SharedRagStore
from sharedrag.langchain.vector_store import SharedRagVectorStore

__all__ = [
    "SharedRagByteStore",
    "SharedRagChatMessageHistory",
    "SharedRagEmbeddings",
    "SharedRagStore",
    "SharedRagVectorStore",
]
