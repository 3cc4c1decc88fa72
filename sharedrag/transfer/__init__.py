"""In and out of pools: records to Arrow and Parquet files and back, and chats from elsewhere into a group's history."""

from sharedrag.transfer.exporting import Exported, export
from sharedrag.transfer.importing import Imported, import_chats
from sharedrag.transfer.restoring import Restored, restore

__all__ = ["Exported", "Imported", "Restored", "export", "import_chats", "restore"]
