"""Chats from files: JSON lines, Parquet, and the exports of ChatGPT and Slack (a folder, a zip, or one of their files).

`load(path)` tells the kinds apart by name and content and gives messages; `demos.messages.exchanges` pairs them. Rows of
JSON lines and Parquet are understood by the names of their fields (see `demos.rows`). What cannot be a message (no text, a
bot's notice, a system prompt) is counted by reason in `Loaded.skipped`; what cannot be read raises `UnreadableData`.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from demos import chatgpt, rows, slack
from demos.reading import Files, Loaded, UnreadableData

PARQUET_MAGIC = b"PAR1"
ZIP_MAGIC = b"PK\x03\x04"


def load(path: str | Path) -> Loaded:
    """All messages of a file or folder, a conversation's in the order of time.

    Raises `UnreadableData` (a ValueError) with the place and what to do; OSError for what the system refuses.
    """
    path = Path(path)
    if path.is_dir():
        loaded = _export(Files.of_folder(path), path)
    else:
        with path.open("rb") as file:
            start = file.read(4096)
        if start.startswith(ZIP_MAGIC):
            loaded = _zipped(path)
        elif start.startswith(PARQUET_MAGIC):
            loaded = rows.messages(_parquet_rows(path))
        elif start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            loaded = _array(path)
        else:
            loaded = rows.messages(_json_lines(path))
    _drop_repeated(loaded)
    if not loaded.messages:
        raise UnreadableData(
            path, f"no messages in it{_because(loaded.skipped)}", "See demos/rows.py for the fields that are understood"
        )
    return loaded


def _drop_repeated(loaded: Loaded) -> None:
    """Of messages with one id the last stays, in the place of the first: it is what a second export has of an edited one."""
    unique = {message.id: message for message in loaded.messages}
    repeated = len(loaded.messages) - len(unique)
    if repeated:
        loaded.skipped["repeated ids"] += repeated
        loaded.messages = list(unique.values())


def _because(skipped: Counter[str]) -> str:
    return f" ({', '.join(f'{count:,} {reason}' for reason, count in skipped.most_common())})" if skipped else ""


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UnreadableData(
            path, f"not a readable Parquet file: {error}", "Write it again with a current Parquet writer"
        ) from None


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.strip().removeprefix(b"\xef\xbb\xbf")
            if line:
                yield _json_object(line, path, number)


def _json_object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        what = f"line {number} is not JSON: {error}"
        raise UnreadableData(
            path, what, "Give one JSON object a line, a Parquet file, or a ChatGPT or Slack export"
        ) from None
    if not isinstance(row, dict):
        raise UnreadableData(path, f"line {number} is a {type(row).__name__}", "Give one JSON object a line")
    return row


def _array(path: Path) -> Loaded:
    """One JSON array: ChatGPT's conversations, a day of a Slack channel, or rows as in JSON lines."""
    try:
        items = orjson.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise UnreadableData(path, f"not JSON: {error}", "Check that the file was copied in full") from None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UnreadableData(path, "not an array of objects", "Give an array of messages or conversations")
    if any("mapping" in item for item in items):
        return chatgpt.messages(items)
    if any("ts" in item and "type" in item for item in items):
        return slack.channel(path.parent.name or path.stem, items, {})
    return rows.messages(items)


def _zipped(path: Path) -> Loaded:
    try:
        with zipfile.ZipFile(path) as archive:
            return _export(Files.of_zip(archive), path)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # the latter: a method or lock not known
        raise UnreadableData(path, f"not a readable zip: {error}", "Unpack it and give the folder") from None


def _export(files: Files, path: Path) -> Loaded:
    conversations = [name for name in files.names if Path(name).match("conversations*.json")]
    if conversations:
        return chatgpt.messages([one for name in sorted(conversations) for one in files.array(name)])
    if any(Path(name).name in slack.INDEX_FILES for name in files.names):
        return slack.messages(files)
    raise UnreadableData(
        path, "neither a ChatGPT nor a Slack export", "It must hold conversations.json, or users.json and channels.json"
    )
