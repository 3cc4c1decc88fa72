"""`SharedRagEmbeddings` against LangChain's own standard suite, and in a store."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from sharedrag import Pool
from sharedrag.embed import load_embedder
from sharedrag.langchain import SharedRagEmbeddings, SharedRagVectorStore


class TestUnit(EmbeddingsUnitTests):
    """LangChain's unit tests."""

    @property
    def embeddings_class(self) -> type[SharedRagEmbeddings]:
        """What is tested."""
        return SharedRagEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        """The default."""
        return {}


class TestIntegration(EmbeddingsIntegrationTests):
    """LangChain's integration tests."""

    @property
    def embeddings_class(self) -> type[SharedRagEmbeddings]:
        """What is tested."""
        return SharedRagEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        """By name."""
        return {"embedder": "light"}


def test_its_vectors_are_the_embedders_own() -> None:
    """Also from a copy that crossed a process."""
    model = pickle.loads(pickle.dumps(SharedRagEmbeddings()))
    own = load_embedder()
    assert model.name == own.name
    assert np.allclose(model.embed_query("sunrise"), own.embed_query("sunrise"))
    assert np.allclose(model.embed_documents(["sunrise", "ferry"]), own.embed_texts(["sunrise", "ferry"]))


def test_a_store_finds_with_it_what_others_wrote(pool: Pool) -> None:
    """What one store adds, another one with the same model finds; a third with another model is refused."""
    model = SharedRagEmbeddings()
    SharedRagVectorStore(pool, "tips", model, embedding_model=model.name).add_texts(["Book the sunrise.", "No ferry."])
    with Pool.open(pool.path) as other:
        found = SharedRagVectorStore(other, "tips", model, embedding_model=model.name).similarity_search("sunrise", k=1)
    assert [one.page_content for one in found] == ["Book the sunrise."]


def test_a_store_without_one_says_what_to_give(pool: Pool) -> None:
    """Texts cannot be added then."""
    with pytest.raises(ValueError, match=r"embedding=SharedRagEmbeddings\(\)"):
        SharedRagVectorStore(pool, "tips").add_texts(["x"])
