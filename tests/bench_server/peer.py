"""A peer behind FastAPI, doing what `/v1/ask` does where it can: questions by vector in, exchanges out.

    .venv-peers/bin/python -m tests.bench_server.peer chroma-serve FOLDER PORT ROWS DATA

starts the peer's own server, loads it, chooses the quickest setting that finds 95 of 100, prints one line of JSON and
serves `POST /v1/ask` on PORT by one uvicorn worker, with the loop and parser that ours has, until its standard input ends.
`chroma-serve` is Chroma's server. `valkey` is a semantic cache as RedisVL's or GPTCache's: a vector query to RediSearch (on
Valkey), here with an HNSW index and no library in between, which is the most that such a cache could do. They are asked for
less than `/v1/ask` answers: no words, no marks, no check that an exchange still exists, no scope.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from tests.bench_server.data import USERS, Corpus, corpus
from tests.peers.adapters import chroma, valkey_search
from tests.peers.protocol import Peer, Place, Rows

PEERS: dict[str, type[Peer]] = {"chroma-serve": chroma.ChromaServer, "valkey": valkey_search.ValkeySearch}
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
