"""The LangChain vector store: LangChain's own suite in one process and over two, then what it does beyond."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from langchain_tests.integration_tests.vectorstores import VectorStoreIntegrationTests

from sharedrag import CollectionMismatch, InvalidFilter, InvalidRecord, Pool, Where
from sharedrag.langchain import SharedRagVectorStore
from tests.langchain.conftest import Elsewhere

EMBEDDING = DeterministicFakeEmbedding(size=16)


class Compass(Embeddings):
    """Places in a plane: a text "x y" is the vector (x, y)."""

    asynchronous_calls = 0

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Each text's place."""
        return [self.embed_query(one) for one in texts]

    def embed_query(self, text: str) -> list[float]:
        """A text's place."""
        return [float(part) for part in text.split()]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """The same, counted."""
        self.asynchronous_calls += 1
        return self.embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        """The same, counted."""
        self.asynchronous_calls += 1
        return self.embed_query(text)


class WrittenElsewhere(SharedRagVectorStore):
    """A store whose writes are done by another process, and whose reads are done here."""

    elsewhere: Elsewhere

    def _plain(self) -> SharedRagVectorStore:
        return SharedRagVectorStore(self.pool, self.collection, self.embedding)

    def add_texts(self, texts: Iterable[str], *args: Any, **options: Any) -> list[str]:
        """Add there."""
        added: list[str] = self.elsewhere(self._plain().add_texts, list(texts), *args, **options)
        return added

    async def aadd_texts(self, texts: Iterable[str], *args: Any, **options: Any) -> list[str]:
        """Add there."""
        return await run_in_executor(None, partial(self.add_texts, texts, *args, **options))

    def delete(self, ids: list[str] | None = None, **options: Any) -> bool | None:
        """Delete there."""
        deleted: bool = self.elsewhere(self._plain().delete, ids)
        return deleted


class TestStandardSuite(VectorStoreIntegrationTests):
    """LangChain's standard suite, in one process."""

    @pytest.fixture
    def vectorstore(self, pool: Pool) -> SharedRagVectorStore:
        """An empty store."""
        return SharedRagVectorStore(pool, "standard", self.get_embeddings())


class TestStandardSuiteOverTwoProcesses(VectorStoreIntegrationTests):
    """LangChain's standard suite, where one process writes and another reads."""

    @pytest.fixture
    def vectorstore(self, pool: Pool, elsewhere: Elsewhere) -> SharedRagVectorStore:
        """An empty store."""
        store = WrittenElsewhere(pool, "standard", self.get_embeddings())
        store.elsewhere = elsewhere
        return store


@pytest.fixture
def places(pool: Pool) -> SharedRagVectorStore:
    """A store of four places."""
    store = SharedRagVectorStore(pool, "places", Compass())
    store.add_texts(
        ["1 0", "0.9 0.1", "0 1", "-1 0"],
        [{"name": "east", "year": 2020}, {"name": "almost east", "year": 2024}, {"name": "north", "year": 2024}, {}],
        ids=["e", "a", "n", "w"],
    )
    return store


def ids_of(documents: list[Document]) -> list[str | None]:
    """Their ids."""
    return [one.id for one in documents]


# ---------------------------------------------------------------------- searching


def test_scores_are_cosines_best_first(places: SharedRagVectorStore) -> None:
    """A search with scores returns the cosine, 1 for the same direction and -1 for the opposite, in falling order."""
    found = places.similarity_search_with_score("2 0", k=4)
    assert [one.id for one, _ in found] == ["e", "a", "n", "w"]
    assert [score for _, score in found] == pytest.approx([1, 0.9 / np.hypot(0.9, 0.1), 0, -1], abs=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_relevance_lies_between_0_and_1(pool: Pool, metric: str, recwarn: pytest.WarningsRecorder) -> None:
    """Under every metric the same place has relevance 1, the others less in the order of the search, none below 0."""
    store = SharedRagVectorStore.from_texts(["1 0", "0 1", "-1 0"], Compass(), pool=pool, metric=metric)
    found = store.similarity_search_with_relevance_scores("1 0", k=3)
    scores = [score for _, score in found]
    assert scores[0] == pytest.approx(1)
    assert all(0 <= score <= 1 for score in scores)
    assert scores == sorted(scores, reverse=True)
    assert not [one for one in recwarn if "Relevance scores" in str(one.message)]


def test_relevance_follows_the_metric_of_the_collection(pool: Pool) -> None:
    """A store that was not told the metric of an existing collection maps that collection's scores all the same."""
    SharedRagVectorStore.from_texts(["0 0", "3 4"], Compass(), pool=pool, metric="l2")
    told_nothing = SharedRagVectorStore(pool, embedding=Compass())
    found = told_nothing.similarity_search_with_relevance_scores("0 0", k=2)
    assert [score for _, score in found] == pytest.approx([1, 1 / 6])


def test_own_relevance_function(pool: Pool) -> None:
    """A relevance function that the caller gives is the one that counts."""
    store = SharedRagVectorStore.from_texts(["1 0"], Compass(), pool=pool, relevance_score_fn=lambda _: 0.25)
    [(_, score)] = store.similarity_search_with_relevance_scores("1 0")
    assert score == 0.25


@pytest.mark.parametrize(
    "filter",
    [{"year": {">=": 2024}}, Where("year", ">=", 2024), {"$or": [{"name": "north"}, {"name": "almost east"}]}],
)
async def test_every_search_takes_a_filter(places: SharedRagVectorStore, filter: Any) -> None:
    """Dicts and filter objects narrow every kind of search, and what the retriever is told reaches them."""
    vector = [1.0, 0.0]
    expected = ["a", "n"]
    assert ids_of(places.similarity_search("1 0", filter=filter)) == expected
    assert ids_of(await places.asimilarity_search("1 0", filter=filter)) == expected
    assert ids_of(places.similarity_search_by_vector(vector, filter=filter)) == expected
    assert ids_of(await places.asimilarity_search_by_vector(vector, filter=filter)) == expected
    assert ids_of([one for one, _ in places.similarity_search_with_score("1 0", filter=filter)]) == expected
    assert ids_of([one for one, _ in await places.asimilarity_search_with_score("1 0", filter=filter)]) == expected
    assert set(ids_of(places.max_marginal_relevance_search("1 0", filter=filter))) == set(expected)
    assert set(ids_of(await places.amax_marginal_relevance_search("1 0", filter=filter))) == set(expected)
    found = await places.amax_marginal_relevance_search_by_vector(vector, filter=filter)
    assert set(ids_of(found)) == set(expected)
    retriever = places.as_retriever(search_kwargs={"filter": filter, "k": 1})
    assert ids_of(retriever.invoke("1 0")) == ids_of(await retriever.ainvoke("1 0")) == ["a"]


def test_a_filter_that_means_nothing_is_refused(places: SharedRagVectorStore) -> None:
    """An unknown operator raises `InvalidFilter` rather than finding everything or nothing."""
    with pytest.raises(InvalidFilter):
        places.similarity_search("1 0", filter={"year": {"~": 2024}})


def test_retriever_with_a_threshold(places: SharedRagVectorStore) -> None:
    """The retriever's score threshold leaves out what is below it."""
    retriever = places.as_retriever(search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.9})
    assert ids_of(retriever.invoke("1 0")) == ["e", "a"]


def test_maximal_marginal_relevance_is_what_langchain_computes(pool: Pool) -> None:
    """For random vectors and every weight, the same documents in the same order as LangChain's own function."""
    rng = np.random.default_rng(7)
    vectors = rng.standard_normal((30, 8)).astype(np.float32)
    query = rng.standard_normal(8).astype(np.float32)
    store = SharedRagVectorStore(pool, "random")
    store.add_embeddings([f"text {row}" for row in range(30)], vectors, ids=[str(row) for row in range(30)])
    fetched = [int(one.id or "") for one in store.similarity_search_by_vector(query.tolist(), k=15)]
    for weight in (0.0, 0.3, 0.5, 1.0):
        expected = maximal_marginal_relevance(query, [vectors[row].tolist() for row in fetched], weight, k=6)
        found = store.max_marginal_relevance_search_by_vector(query.tolist(), 6, 15, weight)
        assert ids_of(found) == [str(fetched[at]) for at in expected]


def test_maximal_marginal_relevance_at_its_ends(places: SharedRagVectorStore) -> None:
    """It prefers what is unlike the first, finds all when more are asked for, and nothing in an empty store."""
    assert ids_of(places.max_marginal_relevance_search("1 0.05", k=2, lambda_mult=0.1))[1] == "w"
    assert set(ids_of(places.max_marginal_relevance_search("1 0", k=10, fetch_k=2))) == {"e", "a", "n", "w"}
    assert SharedRagVectorStore(places.pool, "nothing", Compass()).max_marginal_relevance_search("1 0") == []


# ---------------------------------------------------------------------- writing


async def test_made_from_texts_and_documents(pool: Pool) -> None:
    """`from_texts`, `from_documents` and their asynchronous forms store what they are given, under the given ids."""
    made = SharedRagVectorStore.from_texts(["1 0"], Compass(), [{"a": 1}], ids=["x"], pool=pool, collection="made")
    await SharedRagVectorStore.afrom_texts(["0 1"], Compass(), ids=["y"], pool=pool, collection="made")
    documents = [Document("1 1", metadata={"b": [1, 2]}, id="z")]
    SharedRagVectorStore.from_documents(documents, Compass(), pool=pool, collection="made")
    assert made.get_by_ids(["z", "x", "y"]) == [
        documents[0],
        Document("1 0", metadata={"a": 1}, id="x"),
        Document("0 1", id="y"),
    ]


async def test_asynchronous_forms_embed_asynchronously(pool: Pool) -> None:
    """Adding and searching in an event loop use the embedding's own asynchronous form."""
    embedding = Compass()
    store = await SharedRagVectorStore.afrom_texts(["1 0"], embedding, pool=pool)
    await store.asimilarity_search("1 0")
    await store.asimilarity_search_with_score("1 0")
    await store.amax_marginal_relevance_search("1 0")
    assert embedding.asynchronous_calls == 4


def test_of_equal_ids_the_last_counts(pool: Pool) -> None:
    """An id that is given twice in one call is one document, the later one."""
    store = SharedRagVectorStore(pool, embedding=Compass())
    assert store.add_texts(["1 0", "0 1"], ids=["same", "same"]) == ["same", "same"]
    assert store.get_by_ids(["same"]) == [Document("0 1", id="same")]


def test_nothing_to_add(pool: Pool) -> None:
    """Adding no texts makes no collection, whose dimension nobody knows yet."""
    assert SharedRagVectorStore(pool, "none", Compass()).add_texts([]) == []
    assert pool.collections() == []


def test_delete_all(places: SharedRagVectorStore) -> None:
    """Deleting without ids deletes everything, and the collection takes new documents afterwards."""
    assert places.delete()
    assert places.similarity_search("1 0") == []
    places.add_texts(["0 1"], ids=["new"])
    assert ids_of(places.similarity_search("1 0")) == ["new"]


def test_a_store_joins_an_empty_collection_whatever_its_metric(pool: Pool) -> None:
    """A collection that somebody declared with another metric is taken as it is, also while it holds nothing."""
    pool.collection("declared", dimension=2, metric="l2", dtype="float16")
    SharedRagVectorStore(pool, "declared", Compass()).add_texts(["1 0"], ids=["x"])
    assert len(pool.collection("declared")) == 1


def test_metadata_are_json_values(pool: Pool) -> None:
    """A datetime comes back as ISO-8601 text; what JSON has no word for is refused before anything is written."""
    store = SharedRagVectorStore(pool, embedding=Compass())
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    store.add_texts(["1 0"], [{"at": moment, "list": [1, None]}], ids=["x"])
    assert store.get_by_ids(["x"])[0].metadata == {"at": moment.isoformat(), "list": [1, None]}
    with pytest.raises(InvalidRecord):
        store.add_texts(["1 0"], [{"what": object()}], ids=["y"])
    assert store.get_by_ids(["y"]) == []


def test_vectors_of_another_length_are_refused(places: SharedRagVectorStore) -> None:
    """Another embedding model's vectors raise a typed error, adding and searching."""
    other = SharedRagVectorStore(places.pool, "places", EMBEDDING)
    with pytest.raises(InvalidRecord):
        other.add_texts(["text"])
    with pytest.raises(InvalidRecord):
        other.similarity_search("text")


def test_an_embedding_models_name_is_kept(pool: Pool) -> None:
    """A store that names another embedding model than the collection's is refused."""
    SharedRagVectorStore(pool, embedding=Compass(), embedding_model="compass").add_texts(["1 0"])
    with pytest.raises(CollectionMismatch):
        SharedRagVectorStore(pool, embedding=Compass(), embedding_model="another").similarity_search("1 0")


def test_without_an_embedding_only_vectors_serve(pool: Pool) -> None:
    """A store without embedding takes vectors, finds by vectors, and says what is missing for texts."""
    store = SharedRagVectorStore(pool)
    store.add_embeddings(["east"], [[1.0, 0.0]], [{"a": 1}], ids=["e"])
    assert store.embeddings is None
    assert store.similarity_search_by_vector([1.0, 0.0]) == [Document("east", metadata={"a": 1}, id="e")]
    with pytest.raises(ValueError, match="no embedding"):
        store.similarity_search("east")


def test_langchains_indexing_works_on_it(pool: Pool) -> None:
    """`index` with full clean-up adds, skips what is unchanged, and deletes what is gone from the source."""
    store = SharedRagVectorStore(pool, embedding=EMBEDDING)
    manager = InMemoryRecordManager("namespace")
    manager.create_schema()
    documents = [Document("one", metadata={"source": "a"}), Document("two", metadata={"source": "b"})]
    options: dict[str, Any] = {"cleanup": "full", "source_id_key": "source", "key_encoder": "sha256"}
    assert index(documents, manager, store, **options)["num_added"] == 2
    assert index(documents, manager, store, **options)["num_skipped"] == 2
    assert index(documents[:1], manager, store, **options)["num_deleted"] == 1
    assert [one.page_content for one in store.similarity_search("one", k=5)] == ["one"]


# ---------------------------------------------------------------------- processes


@pytest.fixture
def path_only(pool_path: str) -> Iterator[SharedRagVectorStore]:
    """A store that was given a path where no pool is yet."""
    store = SharedRagVectorStore(pool_path, "documents", EMBEDDING)
    yield store
    store.pool.close()


def test_a_path_is_enough(path_only: SharedRagVectorStore, pool_path: str) -> None:
    """A store given a path makes the pool, and the stores of a process share one handle of it."""
    path_only.add_texts(["text"], ids=["x"])
    again = SharedRagVectorStore(pool_path, "documents", EMBEDDING)
    assert again.pool is path_only.pool
    assert ids_of(again.similarity_search("text")) == ["x"]


def test_pickled_it_finds_the_same(path_only: SharedRagVectorStore) -> None:
    """A pickled store holds the pool's place, not its content, and works when it is back."""
    path_only.add_texts(["text"] * 1000)
    pickled = pickle.dumps(path_only)
    assert len(pickled) < 1000
    back: SharedRagVectorStore = pickle.loads(pickled)
    assert len(back.similarity_search("text", k=2000)) == 1000


def test_each_process_finds_what_the_other_added_in_its_next_search(pool: Pool, elsewhere: Elsewhere) -> None:
    """Turn by turn, a search in one process finds the document that the other has just added, replaced or deleted."""
    store = SharedRagVectorStore(pool, "turns", Compass())
    for turn in range(10):
        elsewhere(store.add_texts, [f"1 {turn}"], ids=["theirs"])
        assert [one.page_content for one in store.similarity_search(f"1 {turn}")] == [f"1 {turn}"]
        elsewhere(store.delete, ["theirs"])
        assert store.similarity_search("1 0") == []
        store.add_texts([f"{turn} 1"], ids=["ours"])
        assert [one.page_content for one in elsewhere(store.similarity_search, "1 1")] == [f"{turn} 1"]
        assert elsewhere(store.get_by_ids, ["ours"])[0].page_content == f"{turn} 1"
        store.delete(["ours"])
        assert elsewhere(store.similarity_search, "1 1") == []


def add_one_by_one(store: SharedRagVectorStore, name: str, count: int) -> None:
    """Many small additions."""
    for number in range(count):
        store.add_texts([f"{name} {number}"], [{"by": name}], ids=[f"{name}-{number}"])


def test_two_processes_that_add_at_once_lose_nothing(pool: Pool, elsewhere: Elsewhere) -> None:
    """Of two times 300 documents, added one by one by two processes at once, all are there."""
    store = SharedRagVectorStore(pool, "both", EMBEDDING)
    theirs = elsewhere.start(add_one_by_one, store, "theirs", 300)
    add_one_by_one(store, "ours", 300)
    theirs.result(60)
    for name in ("ours", "theirs"):
        found = store.similarity_search("anything", k=1000, filter={"by": name})
        assert {one.id for one in found} == {f"{name}-{number}" for number in range(300)}
