"""Chats from files: JSON lines, Parquet, Arrow, the exports of ChatGPT and Slack (a folder, a zip, or one of their files).

`Chats` tells the kinds apart by name and content. Rows of JSON lines, Parquet and Arrow are understood by the names of their
fields (see `rows`). What cannot be a message (no text, a bot's notice, a system prompt) is counted by reason in `skipped`;
what cannot be read raises `UnreadableData`.

JSON lines, Parquet and Arrow are read piece by piece. Of an export, one file's JSON is in memory at a time (of Slack, one
channel's).
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from sharedrag.chats import chatgpt, rows, slack
from sharedrag.chats.messages import Message
from sharedrag.chats.reading import Files, Loaded, UnreadableData

ARROW_MAGIC = b"ARROW1"
PARQUET_MAGIC = b"PAR1"
ZIP_MAGIC = b"PK\x03\x04"
_BOM = b"\xef\xbb\xbf"
Item = TypeVar("Item")


class Chats:
    """The messages of a file or folder, a conversation's in the order of time; read anew each time it is iterated.

    `done` is how much of it the running iteration has read, 0 to 1; `skipped` what it left out, by reason; `kind` what it
    is, known as soon as the first message is: "chatgpt", "slack", or "rows" for all other files.
    """

    def __init__(self, path: str | Path) -> None:
        """Nothing is read yet."""
        self.path = Path(path)
        self.kind = "rows"
        self.done = 0.0
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Message]:
        """Raises `UnreadableData` with the place and what to do; OSError for what the system refuses."""
        self.done, self.skipped = 0.0, Counter()
        any_message = False
        for message in self._messages():
            any_message = True
            yield message
        self.done = 1.0
        if not any_message:
            raise UnreadableData(
                self.path, f"no messages in it{_because(self.skipped)}", "`sharedrag import --help` says what is understood"
            )

    def _messages(self) -> Iterator[Message]:
        if self.path.is_dir():
            return self._export(Files.of_folder(self.path))
        with self.path.open("rb") as file:
            start = file.read(4096)
        if start.startswith(ZIP_MAGIC):
            return self._zipped()
        if start.startswith(ARROW_MAGIC):
            return rows.messages(self._arrow_rows(), self.skipped)
        if start.startswith(PARQUET_MAGIC):
            return rows.messages(self._parquet_rows(), self.skipped)
        if start.removeprefix(_BOM).lstrip().startswith(b"["):
            return self._array()
        return rows.messages(self._json_lines(), self.skipped)

    def _counted(self, items: Iterable[Item], total: int) -> Iterator[Item]:
        """The items, with `done` kept up to date."""
        for at, item in enumerate(items):
            self.done = at / max(1, total)
            yield item

    def _parquet_rows(self) -> Iterator[dict[str, Any]]:
        try:
            with pq.ParquetFile(self.path) as file:
                batches = (row for batch in file.iter_batches(1024) for row in batch.to_pylist())
                yield from self._counted(batches, file.metadata.num_rows)
        except (pa.ArrowException, OSError) as error:
            raise UnreadableData(
                self.path, f"not a readable Parquet file: {error}", "Write it again with a current Parquet writer"
            ) from None

    def _arrow_rows(self) -> Iterator[dict[str, Any]]:
        try:
            with pa.memory_map(str(self.path)) as source:
                file = pa.ipc.open_file(source)
                numbers = self._counted(range(file.num_record_batches), file.num_record_batches)
                yield from (row for number in numbers for row in file.get_batch(number).to_pylist())
        except (pa.ArrowException, OSError) as error:
            raise UnreadableData(
                self.path, f"not a readable Arrow file: {error}", "Write it again as an Arrow IPC file"
            ) from None

    def _json_lines(self) -> Iterator[dict[str, Any]]:
        size, read = max(1, self.path.stat().st_size), 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                self.done = min(1.0, read / size)
                read += len(line)
                line = line.strip().removeprefix(_BOM)
                if line:
                    yield _json_object(line, self.path, number)

    def _array(self) -> Iterator[Message]:
        """One JSON array: ChatGPT's conversations, a day of a Slack channel, or rows as in JSON lines."""
        try:
            items = orjson.loads(self.path.read_bytes().removeprefix(_BOM))
        except orjson.JSONDecodeError as error:
            raise UnreadableData(self.path, f"not JSON: {error}", "Check that the file was copied in full") from None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise UnreadableData(self.path, "not an array of objects", "Give an array of messages or conversations")
        counted = self._counted(items, len(items))
        if any("mapping" in item for item in items):
            self.kind = "chatgpt"
            return chatgpt.messages(counted, self.skipped)
        if any("ts" in item and "type" in item for item in items):
            self.kind = "slack"
            return slack.channel(self.path.resolve().parent.name, counted, {}, self.skipped)
        return rows.messages(counted, self.skipped)

    def _zipped(self) -> Iterator[Message]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield from self._export(Files.of_zip(archive))
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # the latter: a method or lock not known
            raise UnreadableData(self.path, f"not a readable zip: {error}", "Unpack it and give the folder") from None

    def _export(self, files: Files) -> Iterator[Message]:
        conversations = sorted(name for name in files.names if Path(name).match("conversations*.json"))
        if conversations:
            self.kind = "chatgpt"
            names = self._counted(conversations, len(conversations))
            yield from chatgpt.messages((one for name in names for one in files.array(name)), self.skipped)
        elif any(Path(name).name in slack.INDEX_FILES for name in files.names):
            self.kind = "slack"
            yield from slack.messages(files, self.skipped, self._counted)
        else:
            what = "It must hold conversations.json, or users.json and channels.json"
            raise UnreadableData(self.path, "neither a ChatGPT nor a Slack export", what)


def load(path: str | Path) -> Loaded:
    """All messages of a file or folder at once. Raises what iterating `Chats` does.

    Of messages with one id the last stays, in the place of the first: it is what a second export has of an edited one.
    """
    chats = Chats(path)
    unique: dict[str, Message] = {}
    count = 0
    for message in chats:
        unique[message.id] = message
        count += 1
    if count > len(unique):
        chats.skipped["repeated ids"] += count - len(unique)
    return Loaded(list(unique.values()), chats.skipped)


def _because(skipped: Counter[str]) -> str:
    return f" ({', '.join(f'{count:,} {reason}' for reason, count in skipped.most_common())})" if skipped else ""


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
