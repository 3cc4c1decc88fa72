"""Chats from elsewhere: ChatGPT's and Slack's exports, JSON lines and Parquet as messages, and who answered whom in them.

`Chats(path)` reads a file or folder message by message, as often as it is iterated; `load(path)` gives all at once;
`exchanges` pairs questions with their answers. Nothing here knows of pools.
"""

from sharedrag.chats.loading import Chats, load
from sharedrag.chats.messages import Exchange, Message, Pairing, exchanges, names
from sharedrag.chats.reading import Loaded, UnreadableData

__all__ = ["Chats", "Exchange", "Loaded", "Message", "Pairing", "UnreadableData", "exchanges", "load", "names"]
