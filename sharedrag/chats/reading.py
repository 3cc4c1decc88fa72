"""What all readers of chats give, raise and read from."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import orjson

from sharedrag.chats.messages import Message
from sharedrag.errors import SharedRagError

# A zip may claim to unpack to anything; the largest real export files are some hundred megabytes.
FILE_BYTES_MAX = 4 << 30


class UnreadableData(SharedRagError, ValueError):
    """A file that is no chat we can read; `path`, `what` and `hint` say which, what is wrong, and what to do."""

    def __init__(self, path: Path | str, what: str, hint: str) -> None:
        super().__init__(what, path=str(path), hint=hint)


@dataclass(slots=True)
class Loaded:
    """Messages, and how many things were left out for which reason."""

    messages: list[Message] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


class Files:
    """The files of an export, whether it lies in a folder or in a zip: names with slashes, and their JSON."""

    def __init__(self, place: Path, names: list[str], read: Callable[[str], bytes]) -> None:
        self.place, self.names, self._read = place, names, read

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """All .json files below `folder`."""
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.json")) if path.is_file()]
        return cls(folder, names, lambda name: (folder / name).read_bytes())

    @classmethod
    def of_zip(cls, archive: zipfile.ZipFile) -> Self:
        """All .json files of an open zip."""
        place = Path(archive.filename or "")
        names = [one.filename for one in archive.infolist() if one.filename.endswith(".json")]

        def read(name: str) -> bytes:
            if archive.getinfo(name).file_size > FILE_BYTES_MAX:
                raise UnreadableData(
                    place, f"{name} would unpack to over {FILE_BYTES_MAX >> 30} GiB", "Unpack it and give the folder"
                )
            return archive.read(name)

        return cls(place, sorted(names), read)

    def array(self, name: str) -> list[dict[str, Any]]:
        """The objects of the JSON array in a file; raises `UnreadableData`."""
        try:
            items = orjson.loads(self._read(name))
        except orjson.JSONDecodeError as error:
            raise UnreadableData(self.place / name, f"not JSON: {error}", "Check that the export is complete") from None
        if not isinstance(items, list):
            raise UnreadableData(self.place / name, "not a JSON array", "Check that the export is complete")
        return [item for item in items if isinstance(item, dict)]


def iso_time(value: object) -> str | None:
    """A time as ISO 8601: seconds since 1970 (number, or text such as Slack's "1700000000.000200") converted, text kept."""
    if value is None or isinstance(value, bool):
        return None
    try:
        return datetime.fromtimestamp(float(value), UTC).isoformat()  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, OSError):
        return value.isoformat() if isinstance(value, datetime) else str(value) or None
