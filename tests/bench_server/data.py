"""What the benches ask about: real sentences with their real vectors, as exchanges of one group."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow.parquet as pq

from sharedrag import Pool
from sharedrag.embed import MINILM, MINILM_DIMENSION
from sharedrag.history import History
from sharedrag.history.bulk import PastMessage

USERS = 50
_BATCH = 5_000  # exchanges


class Corpus(NamedTuple):
    """Questions with their vectors, (n, 384) float32 of length 1, an answer to each, and questions to ask, (1000, 384)."""

    questions: list[str]
    answers: list[str]
    vectors: npt.NDArray[np.float32]
    asked: npt.NDArray[np.float32]


class _NamedOnly:
    """The embedder's name and width: vectors are given here, nothing is embedded."""

    name = MINILM
    dimension = MINILM_DIMENSION

    def embed_texts(self, texts: object) -> npt.NDArray[np.float32]:
        """Never called."""
        raise AssertionError("the benches give vectors")

    def embed_query(self, query: str) -> npt.NDArray[np.float32]:
        """Never called."""
        raise AssertionError("the benches give vectors")


def corpus(folder: Path, rows: int) -> Corpus:
    """The first `rows` sentences of the data (at most 119,999); each is answered by the one after it."""
    texts = pq.read_table(folder / "minilm_120k_texts.parquet", columns=["text"])["text"].to_pylist()
    vectors = np.load(folder / "minilm_120k_i8.npy", mmap_mode="r")[:rows].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = np.load(folder / "minilm_queries_1k_f16.npy").astype(np.float32)
    return Corpus(texts[:rows], texts[1 : rows + 1], vectors, asked)


def fill(pool_path: str, data: Corpus, capacity: str = "2 GiB") -> str:
    """A pool with one group that holds the corpus, indexed; returns the group's id."""
    began = datetime.now(UTC) - timedelta(days=30)
    with Pool.open(pool_path, create=True, capacity=capacity, name="bench", maintenance=False) as pool:
        history = History(pool, embedder=_NamedOnly())
        group = history.groups.create("bench").id
        for start in range(0, len(data.questions), _BATCH):
            messages: list[PastMessage] = []
            for at in range(start, min(start + _BATCH, len(data.questions))):
                conversation, asker, author = f"chat-{at // 10}", f"user-{at % USERS}", f"user-{(at + 7) % USERS}"
                moment = began + timedelta(seconds=2 * at)
                question, answer = data.questions[at], data.answers[at]
                messages += [
                    PastMessage(f"q{at}", conversation, asker, "user", question, moment),
                    PastMessage(f"a{at}", conversation, author, "assistant", answer, moment, answers=f"q{at}"),
                ]
            draft = history.bulk.draft(group, "bench", messages)
            places = [int(draft.fresh[pair.question.id].name[1:]) for pair in draft.pairs]
            history.bulk.put(draft, data.vectors[places])
        pool.settle()
    return group


def requests(data: Corpus, key: str, host: str, path: str = "/v1/ask", k: int = 5) -> list[bytes]:
    """Whole HTTP requests, one for each question that is asked, its vector with it."""
    made = []
    for number, vector in enumerate(data.asked):
        rounded = [round(float(one), 6) for one in vector]
        body = orjson.dumps({"question": f"Question number {number} of the bench?", "k": k, "vector": rounded})
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        made.append(head.encode() + body)
    return made
