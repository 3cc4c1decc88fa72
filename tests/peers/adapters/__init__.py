"""One module per peer; none is imported before it is measured, and only in the peers' own environment."""

from __future__ import annotations

import importlib

from tests.peers.protocol import Peer

#: name on the command line -> (module, class, label in the table); measured in this order: those that matter most first
PEERS = {
    "sharedrag": ("shared", "SharedRag", "**sharedrag**"),
    "faiss": ("faiss_private", "FaissRaBitQ", "private FAISS, IVF + RaBitQ (the limit)"),
    "lancedb": ("lance", "Lance", "LanceDB"),
    "qdrant-edge": ("qdrant_edge", "QdrantEdge", "Qdrant Edge, embedded"),
    "usearch": ("u_search", "USearch", "usearch, file view + SQLite"),
    "hnswlib": ("hnsw_lib", "HnswLib", "hnswlib, file + SQLite"),
    "pgvector": ("pg_vector", "PgVector", "PostgreSQL + pgvector"),
    "sqlite-vec": ("sqlite_vec", "SqliteVec", "sqlite-vec"),
    "valkey": ("valkey_search", "ValkeySearch", "Valkey + RediSearch"),
    "chroma-server": ("chroma", "ChromaServer", "Chroma, server"),
    "faiss-hnsw": ("faiss_private", "FaissHnsw", "private FAISS, HNSW + SQ8"),
    "llama-sharedrag": ("llama_shared", "LlamaShared", "**sharedrag**, through LlamaIndex"),
    "llama-faiss": ("llama_faiss", "LlamaFaiss", "LlamaIndex FaissVectorStore"),
    "llama-simple": ("llama_simple", "LlamaSimple", "LlamaIndex SimpleVectorStore"),
    "chroma": ("chroma", "ChromaEmbedded", "Chroma, embedded"),
    "milvus-lite": ("milvus", "MilvusLite", "Milvus Lite, its local server"),
    "qdrant-local": ("qdrant_local", "QdrantLocal", "Qdrant, local mode"),
}


def find(name: str) -> type[Peer]:
    """The adapter of that name; imports the peer's library."""
    module, attribute, _ = PEERS[name]
    found: type[Peer] = getattr(importlib.import_module(f"tests.peers.adapters.{module}"), attribute)
    return found
