"""LlamaIndex's own machinery on the stores: indexes, pipelines, memories, each from two processes on one pool."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import StorageContext, SummaryIndex, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer, ChatSummaryMemoryBuffer, Memory, VectorMemory
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import BaseNode, Document, IndexNode, TextNode, TransformComponent
from llama_index.core.storage.chat_store.base_db import MessageStatus

from sharedrag import Pool
from sharedrag.llama_index import (
    SharedAsyncChatStore,
    SharedChatStore,
    SharedDocumentStore,
    SharedIndexStore,
    SharedKVStore,
    SharedVectorStore,
)
from tests.llama_index.staging import Worker


class WordEmbedding(BaseEmbedding):
    """Texts are similar if they share words: a hash of each word is a direction."""

    def _get_text_embedding(self, text: str) -> list[float]:
        vector = [0.01] * 32
        for word in text.lower().replace(".", " ").replace("?", " ").split():
            vector[hashlib.sha256(word.encode()).digest()[0] % 32] += 1.0
        return vector

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


class Marking(TransformComponent):
    """A transformation that leaves a trace in the pool whenever it really runs."""

    path: str

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """The nodes as they are."""
        traces = SharedKVStore(self.path, "traces")
        for node in nodes:
            traces.put(f"{node.node_id} {len(traces.get_all())}", {"text": node.get_content()})
        return nodes


FERRY = "There is no ferry from Oahu to Maui. Take a plane."
BEACH = "Hanauma Bay needs a reservation. It is closed on Mondays."
FOOD = "Poke bowls are best at the fish market."


def documents() -> list[Document]:
    """Three short documents."""
    texts = {"ferry": FERRY, "beach": BEACH, "food": FOOD}
    return [Document(id_=name, text=text, metadata={"topic": name}) for name, text in texts.items()]


def context(pool: Pool) -> StorageContext:
    """A storage context of which all is in the pool."""
    return StorageContext.from_defaults(
        docstore=SharedDocumentStore(pool, "main"),
        index_store=SharedIndexStore(pool, "main"),
        vector_store=SharedVectorStore(pool, "main"),
    )


def build_index(path: str, index_id: str) -> None:
    """An index over the documents, stored in the pool."""
    with Pool.open(path) as pool:
        index = VectorStoreIndex([], storage_context=context(pool), embed_model=WordEmbedding())
        index.set_index_id(index_id)
        for document in documents():
            index.insert(document)


def ask_index(path: str, index_id: str | None, question: str) -> list[str]:
    """The texts that an index loaded from the pool finds, the best first."""
    with Pool.open(path) as pool:
        index = load_index_from_storage(context(pool), index_id=index_id, embed_model=WordEmbedding())
        return [one.get_content() for one in index.as_retriever(similarity_top_k=2).retrieve(question)]


def test_an_index_built_in_one_process_is_used_in_another(pool: Pool, worker: Worker) -> None:
    """Loaded with its id, or without one as long as it is the only one; what one inserts, the other finds."""
    worker.begin(build_index, pool.path, "travel")
    worker.answer()
    for index_id in ("travel", None):
        assert ask_index(pool.path, index_id, "Is there a ferry to Maui?")[0] == FERRY
    index = load_index_from_storage(context(pool), index_id="travel", embed_model=WordEmbedding())
    index.insert(Document(id_="lei", text="A lei is a garland of flowers."))
    worker.begin(ask_index, pool.path, "travel", "garland of flowers")
    assert worker.answer()[0] == "A lei is a garland of flowers."
    worker.begin(build_index, pool.path, "second")
    worker.answer()
    with pytest.raises(ValueError, match="specify index_id"):
        ask_index(pool.path, None, "ferry")
    index.delete_ref_doc("lei", delete_from_docstore=True)
    worker.begin(ask_index, pool.path, "travel", "garland of flowers")
    assert "A lei is a garland of flowers." not in worker.answer()


def test_an_index_needs_no_storage_but_the_vectors(pool: Pool, worker: Worker) -> None:
    """`from_vector_store` on what another process has put there, with a query engine, filters and MMR."""
    worker.begin(build_index, pool.path, "travel")
    worker.answer()
    index = VectorStoreIndex.from_vector_store(SharedVectorStore(pool, "main"), embed_model=WordEmbedding())
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=1)
    assert isinstance(engine, RetrieverQueryEngine)
    response = engine.query("Is there a ferry to Maui?")
    assert FERRY in str(response)
    assert [one.node.ref_doc_id for one in response.source_nodes] == ["ferry"]
    diverse = index.as_retriever(
        similarity_top_k=3, vector_store_query_mode="mmr", vector_store_kwargs={"mmr_threshold": 0.2}
    )
    assert len(diverse.retrieve("ferry")) == 3
    found = asyncio.run(index.as_retriever(similarity_top_k=1).aretrieve("poke fish market"))
    assert found[0].node.metadata == {"topic": "food"}
    assert asyncio.run(engine.aquery("reservation")).source_nodes[0].node.ref_doc_id == "beach"


def test_text_is_found_beside_index_nodes(pool: Pool) -> None:
    """An IndexNode in an index does not hide its text nodes from the retriever."""
    index = VectorStoreIndex([], storage_context=context(pool), embed_model=WordEmbedding())
    index.insert_nodes([TextNode(id_="text", text=FERRY), IndexNode(id_="index", text="ferry table", index_id="t")])
    found = index.as_retriever(similarity_top_k=5).retrieve("ferry")
    assert {one.node.node_id for one in found} == {"text", "index"}
    assert {type(one.node) for one in found} == {TextNode, IndexNode}


def test_other_kinds_of_indexes_are_stored_too(pool: Pool) -> None:
    """A summary index keeps its nodes in the document store and their ids in the index store."""
    built = SummaryIndex.from_documents(documents(), storage_context=context(pool))
    built.set_index_id("summary")
    loaded = load_index_from_storage(context(pool), index_id="summary")
    assert {one.get_content() for one in loaded.as_retriever().retrieve("x")} == {FERRY, BEACH, FOOD}
    assert set(built.ref_doc_info) == {"ferry", "beach", "food"}
    built.delete_ref_doc("food", delete_from_docstore=True)
    again = load_index_from_storage(context(pool), index_id="summary")
    assert {one.get_content() for one in again.as_retriever().retrieve("x")} == {FERRY, BEACH}


def test_nothing_needs_to_be_persisted(pool: Pool, tmp_path: Path) -> None:
    """Core's `persist` is accepted; the stores write no file, and all is in the pool before and after."""
    index = VectorStoreIndex.from_documents(documents(), storage_context=context(pool), embed_model=WordEmbedding())
    index.storage_context.persist(tmp_path)
    SharedChatStore(pool, "main").persist(str(tmp_path / "chat_store.json"))
    assert {one.name for one in tmp_path.iterdir()} == {"graph_store.json", "image__vector_store.json"}
    assert ask_index(pool.path, None, "ferry")[0] == FERRY


# ---------------------------------------------------------------------- pipelines


def pipeline(path: str, **options: Any) -> IngestionPipeline:
    """A pipeline of which all is in the pool."""
    return IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), Marking(path=path), WordEmbedding()],
        vector_store=SharedVectorStore(path, "main"),
        docstore=SharedDocumentStore(path, "main"),
        cache=IngestionCache(cache=SharedKVStore(path, "main"), collection="pipeline"),
        **options,
    )


def ingest(path: str, given: list[Document], strategy: DocstoreStrategy = DocstoreStrategy.UPSERTS) -> int:
    """How many nodes a pipeline made of these documents."""
    return len(pipeline(path, docstore_strategy=strategy).run(documents=given))


def traces(path: str) -> int:
    """How many nodes were really transformed, by anybody."""
    return len(SharedKVStore(path, "traces").get_all())


def close_shared(path: str) -> None:
    """Close the handle that all stores made from this path share in this process."""
    SharedKVStore(path).pool.close()


@pytest.fixture
def path(pool: Pool, worker: Worker) -> Iterator[str]:
    """A pool's path, from which stores are made in both processes."""
    yield pool.path
    close_shared(pool.path)
    worker.begin(close_shared, pool.path)
    worker.answer()


def test_a_pipeline_skips_what_another_process_has_ingested(path: str, worker: Worker) -> None:
    """Unchanged documents are skipped, changed ones replaced, with their vectors (UPSERTS)."""
    worker.begin(ingest, path, documents())
    assert worker.answer() == 3
    assert ingest(path, documents()) == 0
    changed = [*documents()[:2], Document(id_="food", text="Shave ice is best on the North Shore.")]
    assert ingest(path, changed) == 1
    worker.begin(ingest, path, changed)
    assert worker.answer() == 0
    store = SharedVectorStore(path, "main")
    assert {node.get_content() for node in store.get_nodes()} == {FERRY, BEACH, changed[2].text}
    assert SharedDocumentStore(path, "main").get_document_hash("food") == changed[2].hash


def test_a_pipeline_deletes_what_is_gone(path: str, worker: Worker) -> None:
    """UPSERTS_AND_DELETE removes documents that are not among the given ones any more."""
    ingest(path, documents())
    worker.begin(ingest, path, documents()[:1], DocstoreStrategy.UPSERTS_AND_DELETE)
    assert worker.answer() == 0
    assert [node.get_content() for node in SharedVectorStore(path, "main").get_nodes()] == [FERRY]
    assert set(SharedDocumentStore(path, "main").docs) == {"ferry"}


def test_the_cache_saves_another_process_the_work(path: str, worker: Worker) -> None:
    """The same transformations of the same nodes are taken from the cache, also by another process."""
    worker.begin(ingest, path, documents())
    worker.answer()
    before = traces(path)
    assert before == 3
    nodes = IngestionPipeline(
        transformations=pipeline(path).transformations,
        vector_store=SharedVectorStore(path, "elsewhere"),
        cache=IngestionCache(cache=SharedKVStore(path, "main"), collection="pipeline"),
    ).run(documents=documents())
    assert len(nodes) == 3
    assert traces(path) == before
    assert len(SharedVectorStore(path, "elsewhere").get_nodes()) == 3
    IngestionCache(cache=SharedKVStore(path, "main"), collection="pipeline").clear()
    assert SharedKVStore(path, "main").get_all("pipeline") == {}


def test_a_pipeline_runs_in_worker_processes(path: str) -> None:
    """`num_workers=2` spawns processes and pickles transformations and cache into them."""
    assert len(pipeline(path).run(documents=documents(), num_workers=2)) == 3
    assert traces(path) == 3
    assert len(SharedVectorStore(path, "main").get_nodes()) == 3
    assert len(SharedKVStore(path, "main").get_all("pipeline")) > 0
    assert pipeline(path).run(documents=documents(), num_workers=2) == []


def test_a_pipeline_runs_asynchronously_in_forked_processes(path: str) -> None:
    """`arun` with workers forks this process, handles and all; without them it runs here."""
    assert len(asyncio.run(pipeline(path).arun(documents=documents(), num_workers=2))) == 3
    assert traces(path) == 3
    more = [Document(id_="lei", text="A lei is a garland of flowers.")]
    assert len(asyncio.run(pipeline(path).arun(documents=[*documents(), *more]))) == 1
    assert len(SharedVectorStore(path, "main").get_nodes()) == 4
    assert len(SharedDocumentStore(path, "main").docs) == 4


# ---------------------------------------------------------------------- memories


def talk(path: str, key: str, contents: list[str]) -> list[str | None]:
    """Continue a conversation, and return all of it."""
    with Pool.open(path) as pool:
        memory = ChatMemoryBuffer.from_defaults(chat_store=SharedChatStore(pool, "main"), chat_store_key=key)
        for content in contents:
            memory.put(ChatMessage(role="user", content=content))
        return [one.content for one in memory.get_all()]


def test_a_memory_buffer_goes_on_in_another_process(pool: Pool, worker: Worker) -> None:
    """Ann's conversation is the same whichever process she reaches; Bob's is another."""
    memory = ChatMemoryBuffer.from_defaults(
        chat_history=[ChatMessage(role="user", content="1")],
        chat_store=SharedChatStore(pool, "main"),
        chat_store_key="ann",
        token_limit=10,
    )
    worker.begin(talk, pool.path, "ann", ["2", "3"])
    assert worker.answer() == ["1", "2", "3"]
    asyncio.run(memory.aput(ChatMessage(role="user", content="four " * 8)))
    assert [one.content for one in memory.get_all()] == ["1", "2", "3", "four " * 8]
    assert [one.content for one in memory.get()] == ["3", "four " * 8], "the oldest are left out beyond the limit"
    worker.begin(talk, pool.path, "bob", ["hello"])
    assert worker.answer() == ["hello"]
    memory.reset()
    worker.begin(talk, pool.path, "ann", [])
    assert worker.answer() == []


def test_a_summary_buffer_folds_what_both_processes_said(pool: Pool, worker: Worker) -> None:
    """Beyond the token limit the oldest messages become one summary, which the other process sees too."""
    memory = ChatSummaryMemoryBuffer.from_defaults(
        llm=MockLLM(max_tokens=5),
        chat_store=SharedChatStore(pool, "main"),
        chat_store_key="ann",
        token_limit=12,
        tokenizer_fn=str.split,
    )
    memory.put(ChatMessage(role="user", content="one two three four five six"))
    worker.begin(talk, pool.path, "ann", ["seven eight nine ten eleven twelve", "thirteen"])
    worker.answer()
    folded = memory.get()
    assert [one.role.value for one in folded] == ["system", "user", "user"]
    worker.begin(talk, pool.path, "ann", [])
    assert worker.answer() == [one.content for one in folded]


def remember(path: str, contents: list[str]) -> list[str | None]:
    """Continue a session of `Memory`, and return what is active of it."""
    with Pool.open(path) as pool:
        memory = short_memory(pool)
        for content in contents:
            memory.put(ChatMessage(role="user", content=content))
        return [one.content for one in memory.get()]


def short_memory(pool: Pool) -> Memory:
    """A memory that archives beyond some twenty words."""
    return Memory.from_defaults(
        session_id="ann",
        token_limit=20,
        token_flush_size=5,
        chat_history_token_ratio=1.0,
        tokenizer_fn=str.split,
        chat_store=SharedAsyncChatStore(pool, "main"),
    )


def test_a_memory_archives_what_both_processes_said(pool: Pool, worker: Worker) -> None:
    """Old messages of either process are archived by whoever goes beyond the limit; nothing is lost."""
    memory = short_memory(pool)
    memory.put_messages([ChatMessage(role="user", content=f"a{number} b c d e") for number in range(3)])
    worker.begin(remember, pool.path, ["w0 b c d e", "w1 b c d e", "w2 b c d e"])
    assert worker.answer() == ["a2 b c d e", "w0 b c d e", "w1 b c d e", "w2 b c d e"]
    assert len(memory.get_all()) == 6
    archived = memory.get_all(status=MessageStatus.ARCHIVED)
    assert [one.content for one in archived] == ["a0 b c d e", "a1 b c d e"]
    asyncio.run(memory.aset([ChatMessage(role="user", content="fresh")]))
    worker.begin(remember, pool.path, ["start"])
    assert worker.answer() == ["fresh", "start"]
    memory.reset()
    assert memory.get_all() == []


def test_a_chat_engine_keeps_its_history_in_the_pool(pool: Pool, worker: Worker) -> None:
    """The default memory of a context chat engine, on the shared store: another process sees what was said."""
    worker.begin(build_index, pool.path, "travel")
    worker.answer()
    index = VectorStoreIndex.from_vector_store(SharedVectorStore(pool, "main"), embed_model=WordEmbedding())
    memory = Memory.from_defaults(session_id="ann", chat_store=SharedAsyncChatStore(pool, "main"))
    engine = index.as_chat_engine(chat_mode=ChatMode.CONTEXT, llm=MockLLM(), memory=memory)
    assert isinstance(engine, ContextChatEngine)
    engine.chat("Is there a ferry to Maui?")
    asyncio.run(engine.achat("And to Kauai?"))
    worker.begin(remember, pool.path, [])
    said = worker.answer()
    assert "And to Kauai?" in said[-2]


def test_a_vector_memory_works_on_the_vector_store(pool: Pool) -> None:
    """It updates its newest node by deleting and adding it, and clears the store on reset."""
    memory = VectorMemory.from_defaults(
        vector_store=SharedVectorStore(pool, "memory"), embed_model=WordEmbedding(), retriever_kwargs={"similarity_top_k": 1}
    )
    memory.put(ChatMessage(role="user", content="Is there a ferry to Maui?"))
    memory.put(ChatMessage(role="assistant", content="No, take a plane."))
    memory.put(ChatMessage(role="user", content="Where is good poke?"))
    assert [one.content for one in memory.get("ferry to Maui")] == ["Is there a ferry to Maui?", "No, take a plane."]
    memory.reset()
    assert memory.get("ferry") == []
