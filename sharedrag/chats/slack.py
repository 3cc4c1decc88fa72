"""Slack's export: users.json, channels.json (groups, dms, mpims), and a folder per channel with a file per day.

A message is named by its channel and time stamp, as in Slack itself. Notices ("joined the channel"), bots and deleted
messages are left out; Slack's markup for people, channels and links is written out.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from sharedrag.chats.messages import Message
from sharedrag.chats.reading import Files, iso_time

USER_FILES = ("users.json", "org_users.json")
INDEX_FILES = (*USER_FILES, "channels.json", "groups.json", "dms.json", "mpims.json")
# Every other subtype is a notice about the channel or an app's.
Counted = Callable[[Iterable[tuple[str, list[str]]], int], Iterable[tuple[str, list[str]]]]
SAID_SUBTYPES = (None, "me_message", "thread_broadcast", "file_share")
MARKUP = re.compile(r"<([@#!]?)([^|>]*)(?:\|([^>]*))?>")


def messages(files: Files, skipped: Counter[str], counted: Counted) -> Iterator[Message]:
    """Messages of all channels, one after the other, each channel's in the order of time; counts what it leaves out.

    `counted` passes items on, told how many there will be: for whoever shows progress.
    """
    people = _people(files)
    days: dict[str, list[str]] = {}
    for name in files.names:
        path = PurePosixPath(name)
        if path.name not in INDEX_FILES and re.fullmatch(r"\d{4}-\d\d-\d\d\.json", path.name):
            days.setdefault(path.parent.name, []).append(name)
    for one, names in counted(sorted(days.items()), len(days)):
        yield from channel(one, (item for name in names for item in files.array(name)), people, skipped)


def channel(name: str, items: Iterable[dict[str, Any]], people: dict[str, str], skipped: Counter[str]) -> Iterator[Message]:
    """Messages of one channel; `people` maps user ids to names."""
    for item in sorted(items, key=lambda item: str(item.get("ts", ""))):
        text = item.get("text")
        if item.get("type") != "message" or item.get("subtype") not in SAID_SUBTYPES or item.get("bot_id"):
            skipped["notices and bots"] += 1
        elif not isinstance(text, str) or not text.strip():
            skipped["without text"] += 1
        else:
            yield _message(name, item, text, people)


def _message(channel_name: str, item: dict[str, Any], text: str, people: dict[str, str]) -> Message:
    stamp, thread = str(item.get("ts")), item.get("thread_ts")
    return Message(
        id=f"{channel_name}:{stamp}",
        conversation=channel_name,
        text=plain_text(text, people),
        author=_author(item, people),
        reply_to=f"{channel_name}:{thread}" if thread and str(thread) != stamp else None,
        time=iso_time(stamp),
        extra={"channel": channel_name},
    )


def plain_text(text: str, people: dict[str, str]) -> str:
    """Slack's markup as people read it: "<@U1> see <https://a.example|this> &amp; that" -> "@Ann see this & that"."""

    def written_out(found: re.Match[str]) -> str:
        sign, target, label = found.groups()
        if sign == "@":
            return f"@{people.get(target, label or target)}"
        if sign == "#":
            return f"#{label or target}"
        if sign == "!":
            return f"@{label or target.partition('^')[0]}"
        return label or target

    return html.unescape(MARKUP.sub(written_out, text))


def _people(files: Files) -> dict[str, str]:
    people = {}
    for name in files.names:
        if PurePosixPath(name).name in USER_FILES:
            for user in files.array(name):
                people[str(user.get("id"))] = _display_name(user.get("profile") or {}, user) or str(user.get("id"))
    return people


def _author(item: dict[str, Any], people: dict[str, str]) -> str | None:
    user = item.get("user")
    if user in people:
        return people[user]
    name = _display_name(item.get("user_profile") or {}, item.get("user_profile") or {})
    return name or (str(user) if user else None)


def _display_name(profile: dict[str, Any], user: dict[str, Any]) -> str | None:
    names = (profile.get("display_name"), profile.get("real_name"), user.get("real_name"), user.get("name"))
    return next((name for name in names if isinstance(name, str) and name), None)
