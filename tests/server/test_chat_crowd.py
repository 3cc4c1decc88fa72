"""Completions without an upstream: the crowd answers, or says that nobody has yet; by OpenAI's own SDK, on two workers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.server.chat_helpers import FERRY, NO_FERRY, LosingProxy, Member, extra_of, member, text_of
from tests.server.serving import Crowd, Serving
from tests.server.test_chat_transcript import FOLLOW_UPS, IMAGE, QUERIES, TAGS, TITLE


@pytest.fixture
def ann(crowd: Crowd) -> Member:
    """A member who knows about ferries."""
    return member(crowd, "ann")


@pytest.fixture
def bob(crowd: Crowd) -> Member:
    """Another member, who asks."""
    return member(crowd, "bob")


@pytest.fixture
def proxy(serving: Serving) -> Iterator[LosingProxy]:
    """In front of the server; it loses one answer."""
    made = LosingProxy(serving.url)
    yield made
    made.stop()


def test_anns_exchange_answers_bob(ann: Member, bob: Member) -> None:
    """In words that name her, and machine-readably beside OpenAI's own fields."""
    conversation = ann.tells(FERRY, NO_FERRY)
    reply = bob.asks("Can I take a ferry from Oahu to Maui?")
    (choice,) = reply.choices
    assert NO_FERRY in choice.message.content and "ann" in choice.message.content
    assert reply.model == "sharedrag" and choice.finish_reason == "stop" and reply.usage.total_tokens == 0
    extra = extra_of(reply)
    (answer,) = extra["answers"]
    assert (answer["question"], answer["answer"], answer["author"]) == (FERRY, NO_FERRY, "ann")
    assert extra["source"] == "crowd" and extra["stored"] and extra["conversation"] != conversation
    assert bob.said(extra["conversation"]) == [
        ("user", "Can I take a ferry from Oahu to Maui?"),
        ("assistant", choice.message.content),
    ]


def test_anns_exchange_answers_bob_streamed(ann: Member, bob: Member) -> None:
    """The same in chunks; when the stream has ended, everybody finds what was said."""
    ann.tells(FERRY, NO_FERRY)
    chunks = bob.streams(FERRY)
    assert NO_FERRY in text_of(chunks) and "ann" in text_of(chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    extra = extra_of(chunks[-1])
    assert [one["author"] for one in extra["answers"]] == ["ann"]
    assert ann.said(extra["conversation"]) == [("user", FERRY), ("assistant", text_of(chunks))]


def test_another_group_never_sees_it(ann: Member, serving: Serving) -> None:
    """Not by asking, not by naming the conversation, which is not even there for it."""
    conversation = ann.tells(FERRY, NO_FERRY)
    eve = member(Crowd(serving), "eve")
    reply = eve.asks(FERRY)
    assert NO_FERRY not in reply.choices[0].message.content
    assert extra_of(reply)["answers"] == [] and extra_of(reply)["source"] == "nobody"
    assert NO_FERRY not in text_of(eve.streams(FERRY))
    with pytest.raises(openai.NotFoundError) as refused:
        eve.asks(FERRY, extra_headers={"X-Sharedrag-Conversation": conversation})
    assert refused.value.code == "not_found"
    assert ann.said(conversation) == [("user", FERRY), ("assistant", NO_FERRY)]


def test_nobody_has_answered_yet_until_somebody_does(ann: Member, bob: Member, crowd: Crowd) -> None:
    """The question is kept for others; neither that nobody knew nor what repeats the crowd ever comes back as an answer."""
    reply = bob.asks(FERRY)
    extra = extra_of(reply)
    assert extra["source"] == "nobody" and extra["answers"] == [] and extra["stored"]
    assert bob.answers(FERRY) == []
    answer: Any = {"type": "message", "role": "user", "content": NO_FERRY, "answers": extra["question_id"]}
    ann.ai.conversations.items.create(extra["conversation"], items=[answer])
    carol = member(crowd, "carol")
    assert NO_FERRY in carol.asks(FERRY).choices[0].message.content
    assert NO_FERRY in text_of(carol.streams(FERRY))
    assert [(one["author"], one["answer"], one["role"]) for one in carol.answers(FERRY)] == [("ann", NO_FERRY, "user")]


def test_the_stored_exchange_is_there_before_the_stream_ends(bob: Member) -> None:
    """Whoever has read the last chunk finds the messages, before `[DONE]` has been read."""
    body = {"model": "sharedrag", "messages": [{"role": "user", "content": FERRY}], "stream": True}
    with bob.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        conversation = response.headers["x-sharedrag-conversation"]
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    last = json.loads(lines[-2].removeprefix("data: "))
    assert last["sharedrag"]["conversation"] == conversation and last["sharedrag"]["stored"]
    assert [role for role, _ in bob.said(conversation)] == ["user", "assistant"]


# ---------------------------------------------------------------------- conversations


def test_a_named_conversation_is_made_and_gone_on_with(ann: Member, bob: Member) -> None:
    """A client's own name is the group's; each completion adds its last question and the reply, whatever it sends along."""
    named = {"X-Sharedrag-Conversation": "our trip"}
    first = extra_of(ann.asks("Where do we stay?", extra_headers=named))["conversation"]
    history = [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Where do we stay?"},
        {"role": "assistant", "content": "?"},
        {"role": "user", "content": "And when?"},
    ]
    assert extra_of(bob.asks("", messages=history, extra_headers=named))["conversation"] == first
    said = ann.said(first)
    assert [role for role, _ in said] == ["user", "assistant"] * 2
    assert [text for role, text in said if role == "user"] == ["Where do we stay?", "And when?"]
    again = extra_of(ann.asks("Who comes?", extra_headers={"X-Sharedrag-Conversation": first}))["conversation"]
    assert again == first


def test_a_name_is_its_groups_own(ann: Member, serving: Serving) -> None:
    """Two groups that use one name have two conversations."""
    eve = member(Crowd(serving), "eve")
    named = {"X-Sharedrag-Conversation": "our trip"}
    assert (
        extra_of(ann.asks("A?", extra_headers=named))["conversation"]
        != extra_of(eve.asks("B?", extra_headers=named))["conversation"]
    )


def test_an_id_that_nobody_has_is_not_found(ann: Member) -> None:
    """An id of ours cannot be guessed into being."""
    with pytest.raises(openai.NotFoundError):
        ann.asks(FERRY, extra_headers={"X-Sharedrag-Conversation": "conv_0123456789abcdef01234567"})
    assert ann.conversations() == []


def test_a_front_ends_chat_id_is_its_users_own(ann: Member, bob: Member) -> None:
    """One id from two users is two chats; from one user, one."""
    chat = {"X-OpenWebUI-Chat-Id": "7c9a"}
    ours = [
        extra_of(one.asks(text, extra_headers=chat))["conversation"] for one, text in ((ann, "A?"), (bob, "B?"), (ann, "C?"))
    ]
    assert ours[0] == ours[2] != ours[1]


def test_a_transcript_goes_on_in_its_conversation(bob: Member) -> None:
    """Without any header; another reply in it, and it is another chat; after the conversation is deleted, a new one."""
    first = bob.asks(FERRY)
    conversation = extra_of(first)["conversation"]
    past = [{"role": "user", "content": FERRY}, {"role": "assistant", "content": first.choices[0].message.content}]
    second = bob.asks("", messages=[*past, {"role": "user", "content": "And to Kauai?"}])
    assert extra_of(second)["conversation"] == conversation
    more = [
        {"role": "user", "content": "And to Kauai?"},
        {"role": "assistant", "content": second.choices[0].message.content},
    ]
    third = bob.streams("", messages=[*past, *more, {"role": "user", "content": "To Lanai?"}])
    assert extra_of(third[-1])["conversation"] == conversation
    other = bob.asks(
        "", messages=[past[0], {"role": "assistant", "content": "Yes"}, {"role": "user", "content": "And to Kauai?"}]
    )
    assert extra_of(other)["conversation"] != conversation
    bob.ai.conversations.delete(conversation)
    anew = bob.asks("", messages=[*past, {"role": "user", "content": "And to Kauai?"}])
    assert extra_of(anew)["conversation"] != conversation and extra_of(anew)["stored"]


def test_who_has_the_wheel_drives_alone(ann: Member, bob: Member) -> None:
    """Others are told before anything is done; who has it gives the token."""
    conversation = ann.tells(FERRY, NO_FERRY)
    lease = ann.http.post(f"/v1/conversations/{conversation}/lease", json={"seconds": 60}).raise_for_status().json()
    here = {"X-Sharedrag-Conversation": conversation}
    for who, token in (
        (bob, {}),
        (ann, {}),
        (bob, {"X-Sharedrag-Lease": str(lease["token"])}),
        (ann, {"X-Sharedrag-Lease": "1"}),
    ):
        with pytest.raises(openai.APIStatusError) as refused:
            who.asks("May I?", extra_headers=here | token)
        assert refused.value.status_code in (409, 423)
    assert len(ann.said(conversation)) == 2
    assert extra_of(ann.asks("May I?", extra_headers=here | {"X-Sharedrag-Lease": str(lease["token"])}))["stored"]
    assert len(ann.said(conversation)) == 4


# ---------------------------------------------------------------------- what clients do


@pytest.mark.parametrize(
    ("prompt", "key"), [(TITLE, "title"), (TAGS, "tags"), (FOLLOW_UPS, "follow_ups"), (QUERIES, "queries")]
)
def test_chores_are_answered_and_never_stored(bob: Member, prompt: str, key: str) -> None:
    """Streamed or not, with the chat's id; in the JSON that the client asked for."""
    chat = {"X-OpenWebUI-Chat-Id": "chores"}
    reply = bob.asks(prompt, extra_headers=chat)
    assert list(json.loads(reply.choices[0].message.content)) == [key]
    assert list(json.loads(text_of(bob.streams(prompt, extra_headers=chat)))) == [key]
    assert extra_of(reply)["source"] == "chore" and not extra_of(reply)["stored"]
    assert bob.conversations() == []


def test_a_task_by_its_header_is_never_stored(bob: Member) -> None:
    """Whatever its prompt; an empty header, as a template without a task leaves it, means nothing."""
    assert not extra_of(bob.asks("Name this chat", extra_headers={"X-Sharedrag-Task": "title_generation"}))["stored"]
    assert bob.conversations() == []
    assert extra_of(bob.asks("Name this chat", extra_headers={"X-Sharedrag-Task": ""}))["stored"]


@pytest.mark.parametrize("chat", ["temporary:8d1e", "local:8d1e"])
def test_a_temporary_chat_is_answered_and_never_stored(ann: Member, bob: Member, chat: str) -> None:
    """Open WebUI forgets it, and so does the group; each of its questions stands alone."""
    told = ann.tells(FERRY, NO_FERRY)
    here = {"X-OpenWebUI-Chat-Id": chat}
    reply = bob.asks(FERRY, extra_headers=here)
    chunks = bob.streams(FERRY, extra_headers=here)
    assert NO_FERRY in reply.choices[0].message.content and NO_FERRY in text_of(chunks)
    for extra in (extra_of(reply), extra_of(chunks[-1])):
        assert not extra["stored"] and extra["conversation"] is None
    assert bob.conversations() == [told]


def test_parts_beside_text_are_kept(ann: Member, bob: Member) -> None:
    """The text is searched for; the image is in the stored message."""
    ann.tells("What is the flower on this picture?", "A hibiscus.")
    parts = [{"type": "text", "text": "What is the flower on this picture?"}, IMAGE]
    reply = bob.asks("", messages=[{"role": "user", "content": parts}])
    assert "A hibiscus." in reply.choices[0].message.content
    stored = bob.http.get(
        f"/v1/conversations/{extra_of(reply)['conversation']}/items/{extra_of(reply)['question_id']}"
    ).json()
    assert IMAGE in stored["content"]


def test_a_stream_says_its_usage_when_asked(bob: Member) -> None:
    """In a last chunk without choices, as OpenAI's; no model has read or written anything."""
    chunks = bob.streams(FERRY, stream_options={"include_usage": True})
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 0
    assert all(chunk.usage is None for chunk in bob.streams("Again?"))


def test_models(bob: Member) -> None:
    """One, under its name; no other."""
    assert [one.id for one in bob.ai.models.list()] == ["sharedrag"]
    assert bob.ai.models.retrieve("sharedrag").owned_by == "sharedrag"
    with pytest.raises(openai.NotFoundError) as refused:
        bob.ai.models.retrieve("org/none")
    assert refused.value.param == "model"


def test_the_sdks_own_retry_is_stored_once(ann: Member, crowd: Crowd, proxy: LosingProxy) -> None:
    """The first answer is lost on its way; the second is the same, of one question."""
    ann.tells(FERRY, NO_FERRY)
    bob = member(crowd, "bob", proxy.url)
    bob.ai = bob.ai.with_options(max_retries=2)
    reply = bob.asks(FERRY)
    assert NO_FERRY in reply.choices[0].message.content
    assert [line for line in proxy.seen if "completions" in line] == ["POST /v1/chat/completions HTTP/1.1"] * 2
    assert [role for role, _ in bob.said(extra_of(reply)["conversation"])] == ["user", "assistant"]
    assert len(bob.conversations()) == 2  # ann's and this one


def test_the_sdks_retry_of_a_stream_is_stored_once(crowd: Crowd, proxy: LosingProxy) -> None:
    """The same for a stream."""
    bob = member(crowd, "bob", proxy.url)
    bob.ai = bob.ai.with_options(max_retries=2)
    chunks = bob.streams(FERRY)
    assert bob.said(extra_of(chunks[-1])["conversation"]) == [("user", FERRY), ("assistant", text_of(chunks))]
    assert len(bob.conversations()) == 1


def test_asking_twice_is_not_a_retry(bob: Member) -> None:
    """The same words again, from a client that does not say that it repeats itself."""
    conversations = {extra_of(bob.asks(FERRY))["conversation"] for _ in range(3)}
    assert len(conversations) == 3


def test_an_idempotency_key_is_one_request(bob: Member) -> None:
    """However often and from however many threads it is sent; with another body it is another request."""
    key = {"Idempotency-Key": "trip-1"}
    replies: list[Any] = []
    threads = [threading.Thread(target=lambda: replies.append(bob.asks(FERRY, extra_headers=key))) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len({extra_of(one)["answer_id"] for one in replies}) == 1 and len(replies) == 8
    assert len(bob.conversations()) == 1
    assert extra_of(bob.asks("Another?", extra_headers=key))["answer_id"] != extra_of(replies[0])["answer_id"]


def test_a_request_whose_exchange_was_deleted_since_is_answered_and_stays_deleted(bob: Member) -> None:
    """Sent again, it is no mistake of ours; what was deleted does not come back by it."""
    key = {"Idempotency-Key": "trip-2"}
    first = extra_of(bob.asks(FERRY, extra_headers=key))
    path = f"/v1/conversations/{first['conversation']}"
    assert bob.http.delete(f"{path}/items/{first['answer_id']}").status_code == 200
    assert not extra_of(bob.asks(FERRY, extra_headers=key))["stored"]
    assert bob.http.delete(path).status_code == 200
    again = bob.asks(FERRY, extra_headers=key)
    assert not extra_of(again)["stored"] and again.choices[0].message.content
    assert extra_of(bob.asks(FERRY))["stored"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"messages": []}',
        b'{"messages": [{"content": "no role"}]}',
        b'{"messages": [{"role": "wizard", "content": "?"}]}',
        b'{"messages": [{"role": "user", "content": 7}]}',
        b'{"messages": [{"role": "user", "content": "?"}], "n": 0}',
        b'{"messages": [{"role": "user", "content": "?"}], "stream_options": 3}',
        b'{"messages": [{"role": "user", "content": "?", "x": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "### Task: {\\"title\\": ?} <chat_history> USER: \\ud800"}]}',
    ],
)
def test_what_means_nothing_is_refused_in_openais_shape(bob: Member, body: bytes) -> None:
    """With a 400 that says what is wrong; nothing is stored."""
    refused = bob.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert error["type"] == "invalid_request_error" and error["message"]
    assert bob.conversations() == []


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Be brief"}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "text"}]}],
    ],
)
def test_where_nothing_is_asked_nothing_is_stored(bob: Member, messages: list[dict[str, Any]]) -> None:
    """It is answered all the same."""
    reply = bob.asks("", messages=messages)
    assert reply.choices[0].message.content and not extra_of(reply)["stored"]
    assert bob.conversations() == []


def test_a_wrong_key_is_refused_in_openais_shape(serving: Serving) -> None:
    """For completions and models, so that the SDK raises what its users expect."""
    nobody = Member(serving.url, "sr_wrong")
    with pytest.raises(openai.AuthenticationError):
        nobody.asks(FERRY)
    with pytest.raises(openai.AuthenticationError):
        nobody.ai.models.list()
    assert httpx.post(f"{serving.url}/v1/chat/completions", json={}).status_code == 401
