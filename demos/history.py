"""The group's history as records of one collection: how an exchange is laid out, embedded and found again.

| part of a record | what |
| --- | --- |
| id | the answer message's id: an answer is told once, however often its share is written again |
| text | the answer |
| vector | of the opening question, the question and the answer (below) |
| metadata | question, author, asker, time, node (that wrote it), conversation, question_id, and what the source has more |

What is embedded was measured on the 251 answerable labelled questions of the Hawaii chat (hit@1 / hit@5, plain cosine):

| embedded | all | paraphrase | near miss | opposite | follow-up |
| --- | --- | --- | --- | --- | --- |
| answer | .32 / .55 | .42 / .62 | .18 / .48 | .25 / .45 | .13 / .40 |
| question | .47 / .76 | .54 / .78 | .70 / .85 | .35 / .85 | .08 / .53 |
| question + answer | .55 / .85 | .65 / .89 | .73 / .93 | .45 / .90 | .05 / .63 |
| **opening + question + answer** | .59 / .89 | .61 / .88 | .75 / .98 | .55 / .90 | .35 / .83 |

An answer alone seldom says what it is about ("Children go in free"); a follow-up's question does not either ("and the
kids?"), but with the question that opened the chat it does. Paraphrases lose 6 of 151 by it, follow-ups win 12 of 40.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import TextNode

from sharedrag import Pool
from sharedrag.chats import Exchange
from sharedrag.llama_index import SharedVectorStore

COLLECTION = "history"
EMBEDDED_KEYS = ("opening", "question")
ANSWERS_RETRIEVED = 5


def to_node(exchange: Exchange, node: int) -> TextNode:
    """An exchange as the LlamaIndex node whose record is laid out as above."""
    known = {
        "opening": exchange.opening,
        "question": exchange.question,
        "author": exchange.author,
        "asker": exchange.asker,
        "time": exchange.time,
        "node": node,
        "conversation": exchange.conversation,
        "question_id": exchange.question_id,
    }
    metadata = {key: value for key, value in known.items() if value is not None}
    metadata |= {key: value for key, value in exchange.extra.items() if key not in metadata}
    return TextNode(
        id_=exchange.id,
        text=exchange.answer,
        metadata=metadata,
        # LlamaIndex embeds what these leave: opening, question, answer, a line each, without their names.
        excluded_embed_metadata_keys=[key for key in metadata if key not in EMBEDDED_KEYS],
        metadata_template="{value}",
    )


def open_store(pool: Pool, embedding_model: str) -> SharedVectorStore:
    """The history's store; the collection pins the model's name, so that nobody searches it with another's vectors."""
    return SharedVectorStore(pool, COLLECTION, embedding_model=embedding_model)


def retriever(store: SharedVectorStore, model: BaseEmbedding) -> BaseRetriever:
    """What a LlamaIndex application asks its questions of."""
    return VectorStoreIndex.from_vector_store(store, embed_model=model).as_retriever(similarity_top_k=ANSWERS_RETRIEVED)


def homes(exchanges: Sequence[Exchange], people: Sequence[str], nodes: int) -> dict[str, int]:
    """At which node each person sits, so that all nodes have about as many answers to write; empty for a few people."""
    if len(people) < 2 * nodes:
        return {}
    answers = Counter(exchange.author for exchange in exchanges)
    loads = [0] * nodes
    found = {}
    for person in people:
        found[person] = loads.index(min(loads))
        loads[found[person]] += answers[person] + 1  # the one: who only asks sits somewhere too
    return found


def shares(exchanges: Sequence[Exchange], found_homes: Mapping[str, int], nodes: int) -> list[list[int]]:
    """Which exchanges (their places) each node writes: those its people answered; of nobody's, conversations in turn."""
    found: list[list[int]] = [[] for _ in range(nodes)]
    conversations: dict[str, int] = {}
    for place, exchange in enumerate(exchanges):
        turn = conversations.setdefault(exchange.conversation, len(conversations))
        found[found_homes.get(exchange.author or "", turn % nodes)].append(place)
    return found
