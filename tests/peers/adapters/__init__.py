"""One module per peer; none is imported before it is measured, and only in the peers' own environment."""

from __future__ import annotations

import importlib

from tests.peers.protocol import Peer

#: name on the command line -> (module, class, label in the table); in the order in which they are measured
PEERS = {
    "sharedrag": ("shared", "SharedRag", "**sharedrag**"),
    "faiss": ("faiss_private", "FaissRaBitQ", "private FAISS, IVF + RaBitQ (the limit)"),
    "faiss-hnsw": ("faiss_private", "FaissHnsw", "private FAISS, HNSW + SQ8"),
    "hnswlib": ("hnsw_lib", "HnswLib", "hnswlib, file + SQLite"),
    "usearch": ("u_search", "USearch", "usearch, file view + SQLite"),
    "lancedb": ("lance", "Lance", "LanceDB"),
    "chroma": ("chroma", "ChromaEmbedded", "Chroma, embedded"),
    "chroma-server": ("chroma", "ChromaServer", "Chroma, server"),
    "qdrant-local": ("qdrant_local", "QdrantLocal", "Qdrant, local mode"),
    "qdrant-edge": ("qdrant_edge", "QdrantEdge", "Qdrant Edge, embedded"),
    "milvus-lite": ("milvus", "MilvusLite", "Milvus Lite, its local server"),
    "sqlite-vec": ("sqlite_vec", "SqliteVec", "sqlite-vec"),
    "pgvector": ("pg_vector", "PgVector", "PostgreSQL + pgvector"),
    "valkey": ("valkey_search", "ValkeySearch", "Valkey + RediSearch"),
    "llama-simple": ("llama_simple", "LlamaSimple", "LlamaIndex SimpleVectorStore"),
    "llama-faiss": ("llama_faiss", "LlamaFaiss", "LlamaIndex FaissVectorStore"),
    "llama-sharedrag": ("llama_shared", "LlamaShared", "**sharedrag**, through LlamaIndex's SharedVectorStore"),
}


def find(name: str) -> type[Peer]:
    """The adapter of that name; imports the peer's library."""
    module, attribute, _ = PEERS[name]
    found: type[Peer] = getattr(importlib.import_module(f"tests.peers.adapters.{module}"), attribute)
    return found
