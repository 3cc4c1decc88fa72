"""HTTP as uvicorn speaks it over httptools, but for a limit on what it gathers before anybody has looked at it.

The parser keeps a request's line, its headers and its trailers until they are whole, whatever they grow to and whoever
sends them: 28 MB of small headers took 400 MB of memory. Bodies have a limit of their own (`limits.BodyLimit`).
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_MAX = 65_536
_HEADER_COSTS = 64  # of each header, beside its bytes
_REFUSED = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedHead(HttpToolsProtocol):
    """Closes a connection whose request line, headers and trailers come to more than `HEAD_MAX` bytes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head = 0  # of this request, as far as it has been told
        self._untold = 0  # bytes that the parser has kept to itself since it last told something

    def data_received(self, data: bytes) -> None:
        """Parse more, unless the connection is being closed."""
        if self.transport.is_closing():
            return
        self._untold += len(data)
        super().data_received(data)
        if self._untold > HEAD_MAX:
            self._refuse()

    def on_message_begin(self) -> None:
        """Another request."""
        self._head = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """The request line, or a part of it."""
        if self._told(len(url)):
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or a trailer."""
        if self._told(len(name) + len(value) + _HEADER_COSTS):
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._untold = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._untold = 0
        super().on_message_complete()

    def _told(self, size: int) -> bool:
        """Count that in; False, with the connection closed, if it is too much."""
        self._untold = 0
        self._head += size
        if self._head > HEAD_MAX:
            self._refuse()
        return self._head <= HEAD_MAX

    def _refuse(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_REFUSED)
            self.transport.close()
