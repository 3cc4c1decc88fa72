"""What a client's messages say: the question, what is around it, which chat it continues, and what is no question at all."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from server.transcript import NO_MODEL, Transcript, text_of

TITLE = (
    "### Task:\nGenerate a concise title summarizing the chat history.\n### Output:\n"
    'JSON format: { "title": "your concise title here" }\n### Chat History:\n<chat_history>\n'
    "USER: Is there a ferry from Oahu to Maui these days?\nASSISTANT: No.\n</chat_history>"
)
TAGS = '### Task:\nGenerate 1-3 broad tags.\n### Output:\nJSON format: { "tags": ["tag1"] }\n<chat_history>\nUSER: Hi'
FOLLOW_UPS = (
    '### Task:\nPredict 3-5 messages.\n### Output:\nJSON format: { "follow_ups": ["a"] }\n<chat_history>\nx\n</chat_history>'
)
QUERIES = '### Task:\nAnalyze the chat.\n### Output:\n{\n  "queries": ["query1"]\n}\n<chat_history>\nUSER: "title": x'
IMAGE: dict[str, Any] = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def user(content: Any) -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": content}


def model(content: Any) -> dict[str, Any]:
    """A model's."""
    return {"role": "assistant", "content": content}


def test_the_question_is_the_last_user_message() -> None:
    """Whatever stands behind it, such as what a tool returned."""
    asked = Transcript([user("first"), model("reply"), user(" second "), model(None), {"role": "tool", "content": "42"}])
    assert asked.question == "second"


def test_without_a_user_message_there_is_no_question() -> None:
    """Nor is anything wrong with that."""
    asked = Transcript([{"role": "system", "content": "Be brief"}])
    assert asked.question == "" and asked.parts is None and not asked.is_chore and asked.before() is None


def test_parts_are_searched_by_their_texts_and_kept_as_they_are() -> None:
    """Text parts alone are kept as text only."""
    parts = [{"type": "text", "text": "What is"}, IMAGE, {"type": "text", "text": "this?"}]
    assert Transcript([user(parts)]).question == "What is\nthis?"
    assert Transcript([user(parts)]).parts == parts
    assert Transcript([user(parts[:1])]).parts is None


@pytest.mark.parametrize("content", [None, [], [{"type": "text"}], [{"type": "text", "text": 3}], "", [IMAGE]])
def test_content_without_text_is_an_empty_text(content: Any) -> None:
    """Of whatever shape."""
    assert text_of(content) == ""


def test_what_a_front_end_found_in_files_is_no_part_of_the_question() -> None:
    """Open WebUI puts it before the question, in the user's own message."""
    context = (
        "### Task:\nRespond to the user query using the provided context, with citations.\n<context>\nA file\n</context>\n"
    )
    for question in ("Is there a ferry?", "\n<user_query>\nIs there a ferry?\n</user_query>\n"):
        asked = Transcript([user(context + question)])
        assert asked.question == "Is there a ferry?" and not asked.is_chore


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [
        (TITLE, {"title": "Is there a ferry from Oahu…"}),
        (TAGS, {"tags": []}),
        (FOLLOW_UPS, {"follow_ups": []}),
        (QUERIES, {"queries": []}),
        ('### Task:\nDescribe.\n{ "prompt": "x" }', {"prompt": ""}),
        ('### Task:\nYou are an autocompletion system.\n{ "text": "x" }', {"text": ""}),
    ],
)
def test_a_chore_gets_the_json_it_asks_for(prompt: str, reply: dict[str, Any]) -> None:
    """The shape is read from its instructions, never from the chat in it."""
    asked = Transcript([user(prompt)])
    assert asked.is_chore
    assert orjson.loads(asked.chore_reply()) == reply


def test_other_chores_are_told_that_there_is_no_model() -> None:
    """One of a set of models' answers, an emoji, a title in plain words."""
    for prompt in (
        "Your task is to reflect the speaker's likely facial expression through a fitting emoji. ...",
        "You have been provided with a set of responses from various models to the latest user query: ...",
        "Provide a concise, 5-word-or-less title for the conversation",
    ):
        asked = Transcript([user(prompt)])
        assert asked.is_chore and asked.chore_reply() == NO_MODEL
    assert Transcript([{"role": "system", "content": "Available Tools: []"}, user("Query: the weather?")]).is_chore


def test_what_a_client_calls_a_task_is_a_chore() -> None:
    """Its prompts are an administrator's to change: then its header says what they are."""
    asked = Transcript(
        [user('Name this chat: {"title": "..."}\n<chat_history>\nUSER: A ferry?\n</chat_history>')], task=True
    )
    assert asked.is_chore and orjson.loads(asked.chore_reply()) == {"title": "A ferry?"}


def test_what_is_noted_of_a_user_is_a_chore() -> None:
    """Open WebUI asks a model what to remember of its user; that is for nobody else to read."""
    reviewer = {"role": "system", "content": "You are Open WebUI's private memory reviewer. Return only valid JSON."}
    asked = Transcript([reviewer, user('Review the turn. Return {"operations":[]}\nConversation:\nuser: I am ill')])
    assert asked.is_chore and orjson.loads(asked.chore_reply()) == {"operations": []}


def test_people_may_talk_of_tasks() -> None:
    """Only the exact beginnings of clients' prompts make a chore."""
    for text in ("My task: find a ferry", "What is ### Task: good for?", "Title, please", "Available Tools: what are they?"):
        assert not Transcript([{"role": "system", "content": "Be brief"}, user(text)]).is_chore


def test_a_chat_is_known_again_by_what_was_said() -> None:
    """The next request's past is this one's with the reply, whatever system texts and spaces a client adds."""
    first = Transcript([{"role": "system", "content": "It is 10:00"}, user("Is there a ferry?")])
    then = Transcript(
        [
            {"role": "system", "content": "It is 10:05"},
            user("Is there a ferry? "),
            model([{"type": "text", "text": "No."}]),
            user("Sure?"),
        ]
    )
    assert first.before() is None
    assert then.before() == first.after("No.\n")
    assert then.before() != first.after("Yes.")


def test_who_said_what_is_part_of_it() -> None:
    """Texts cannot be moved between messages or roles."""
    pasts = [
        [user("ab"), model("c"), user("?")],
        [user("a"), model("bc"), user("?")],
        [user("a"), model("b"), user("c"), model("x"), user("?")],
        [user("c"), model("ab"), user("?")],
    ]
    assert len({Transcript(past).before() for past in pasts}) == len(pasts)


def test_data_goes_into_the_users_own_message_and_nothing_else_changes() -> None:
    """For texts and for content parts; the client's list stays as it was."""
    system, later = {"role": "system", "content": "Be brief"}, {"role": "tool", "content": "42", "tool_call_id": "1"}
    messages = [system, user("first"), model("reply"), user("second") | {"name": "Bob"}, later]
    before = orjson.dumps(messages)
    joined = Transcript(messages).with_data("DATA")
    assert joined == [*messages[:3], {"role": "user", "content": "DATA\n\nsecond", "name": "Bob"}, later]
    assert orjson.dumps(messages) == before
    (only,) = Transcript([user([IMAGE])]).with_data("DATA")
    assert only["content"] == [{"type": "text", "text": "DATA"}, IMAGE]
