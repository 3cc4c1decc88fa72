"""A peer behind FastAPI, doing what `/v1/ask` does where it can: questions by vector in, exchanges out.

    .venv-peers/bin/python -m tests.bench_server.peer chroma-serve FOLDER PORT ROWS DATA

starts the peer's own server, loads it, chooses the quickest setting that finds 95 of 100, prints one line of JSON and
serves `POST /v1/ask` on PORT by one uvicorn worker, with the loop and parser that ours has, until its standard input ends.

- `chroma-serve`: Chroma's server.
- `redisvl`: RedisVL's `SemanticCache` as it comes (a flat index, its default distance) over Valkey with RediSearch.
- `valkey`: the bare vector query that such a cache makes, over an HNSW index and with no library in between: the most that a
  cache on RediSearch could do.

They are asked for less than `/v1/ask` answers: no words, no marks, no check that an exchange still exists, no scope, no key.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from tests.bench_server.data import USERS, Corpus, corpus
from tests.peers.adapters import chroma, valkey_search
from tests.peers.protocol import DIMENSION, Hit, Peer, Place, Rows, Vectors


class RedisVL(valkey_search.ValkeySearch):
    """RedisVL's cache over the same server."""

    settings: ClassVar[str] = "RedisVL SemanticCache, flat index, distance_threshold 0.1 (its defaults)"
    knobs: ClassVar[tuple[Any, ...]] = (None,)

    def __init__(self, place: Place) -> None:
        """The cache; vectors are given, so that its vectorizer is never asked."""
        redis, llm = importlib.import_module("redis"), importlib.import_module("redisvl.extensions.cache.llm")
        vectorize = importlib.import_module("redisvl.utils.vectorize")
        nothing = vectorize.CustomVectorizer(embed=lambda text, **_: [0.0] * DIMENSION)
        client = redis.Redis(unix_socket_path=str(place.folder / "socket"))
        self._cache = llm.SemanticCache(name="bench", vectorizer=nothing, redis_client=client)

    def load(self, batches: Iterable[Rows]) -> None:
        """One by one, as its interface has it."""
        for rows in batches:
            for text, vector, fields in zip(rows.texts, rows.vectors, rows.metadata, strict=True):
                question, _, answer = text.partition("\n\n")
                self._cache.store(question, answer, vector.tolist(), metadata={"author": fields["author"]})

    def use(self, knob: Any) -> None:
        """Nothing: it compares all."""

    def search(self, query: Vectors, k: int, room: str | None = None) -> list[Hit]:
        """What is near enough."""
        found = self._cache.check(vector=query.tolist(), num_results=k)
        return [Hit(one["entry_id"], f"{one['prompt']}\n\n{one['response']}", one["metadata"]) for one in found]

    def close(self) -> None:
        """Nothing: its server goes."""


PEERS: dict[str, type[Peer]] = {
    "chroma-serve": chroma.ChromaServer,
    "redisvl": RedisVL,
    "valkey": valkey_search.ValkeySearch,
}
RECALL = 0.95
K = 10


class Question(BaseModel):
    """As ours."""

    question: str
    k: int = 5
    vector: list[float]


class Answer(BaseModel):
    """What a peer can tell."""

    exchange: str
    question: str
    answer: str
    author: str


class Answers(BaseModel):
    """As ours."""

    answers: list[Answer]


def application(peer: Peer) -> FastAPI:
    """One route. The client blocks, so it runs in FastAPI's threads, as its guide has it."""
    app = FastAPI()

    @app.post("/v1/ask")
    def ask(body: Question) -> Answers:
        found = peer.search(np.asarray(body.vector, np.float32), body.k)
        answers = []
        for hit in found:
            question, _, answer = hit.text.partition("\n\n")
            answers.append(Answer(exchange=hit.id, question=question, answer=answer, author=str(hit.metadata["author"])))
        return Answers(answers=answers)

    return app


def _batches(data: Corpus, size: int = 1000) -> Iterator[Rows]:
    for start in range(0, len(data.questions), size):
        numbers = list(range(start, min(start + size, len(data.questions))))
        yield Rows(
            numbers,
            [f"m{one}" for one in numbers],
            data.vectors[numbers],
            [f"{data.questions[one]}\n\n{data.answers[one]}" for one in numbers],
            [{"room": "bench", "author": f"user-{one % USERS}", "ts": one} for one in numbers],
        )


def _recall(peer: Peer, data: Corpus, asked: int = 100) -> float:
    wanted = np.argsort(-(data.asked[:asked] @ data.vectors.T), axis=1)[:, :K]
    found = 0
    for vector, best in zip(data.asked[:asked], wanted, strict=True):
        found += len({hit.id for hit in peer.search(vector, K)} & {f"m{one}" for one in best})
    return found / (asked * K)


def main(name: str, folder: str, port: str, rows: str, data_folder: str) -> None:
    """Serve until standard input ends."""
    cls = PEERS[name]
    place = Place(Path(folder), int(rows), int(port) + 1)
    data = corpus(Path(data_folder), int(rows))
    command = cls.serve(place)
    with open(place.folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        cls.create(place)
        peer = cls(place)
        peer.load(_batches(data))
        reached, knob = 0.0, None
        for knob in cls.knobs:
            peer.use(knob)
            if knob is None and name == "redisvl":
                break  # it compares all, and gives what is near enough only
            reached = _recall(peer, data)
            if reached >= RECALL:
                break
        said: dict[str, Any] = {"recall": round(reached, 3), "knob": knob, "settings": cls.settings}
        print(json.dumps(said), flush=True)
        server = uvicorn.Server(
            uvicorn.Config(
                application(peer), port=int(port), loop="uvloop", http="httptools", access_log=False, log_level="error"
            )
        )
        threading.Thread(target=_end_with_input, args=(server,), daemon=True).start()
        server.run()
        peer.close()
    finally:
        process.terminate()
        process.wait()


def _end_with_input(server: uvicorn.Server) -> None:
    sys.stdin.read()
    server.should_exit = True


if __name__ == "__main__":
    os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
    main(*sys.argv[1:])
