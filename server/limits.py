"""How much one caller may ask: bytes in a body, requests in a second. What goes beyond is refused at once.

Rates are counted in each worker: a caller whose connections reach N workers has N times the rate. Counting across workers
would make every request write to shared memory, for a limit that only keeps one client from crowding out the others.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from threading import Lock

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.problems import TOO_LARGE, TOO_MANY, Trouble, answer

_CALLERS_MAX = 65_536  # whose buckets are remembered; the longest unseen is forgotten first
_FAILURES_PER_S, _FAILURES_BURST = 5.0, 20


class Buckets:
    """A token bucket for each name: `rate` tokens a second, up to `burst`."""

    def __init__(self, rate: float, burst: int) -> None:
        """A rate of 0 lets everything pass."""
        self.rate, self.burst = rate, float(burst)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # name -> (tokens, as of)
        self._lock = Lock()

    def take(self, name: str) -> float:
        """Take a token. Returns 0, or in how many seconds there will be one."""
        if not self.rate:
            return 0.0
        now = time.monotonic()
        with self._lock:
            tokens, since = self._buckets.pop(name, (self.burst, now))
            tokens = min(self.burst, tokens + (now - since) * self.rate)
            wait_s = 0.0 if tokens >= 1 else (1 - tokens) / self.rate
            self._buckets[name] = (tokens if wait_s else tokens - 1, now)
            if len(self._buckets) > _CALLERS_MAX:
                self._buckets.popitem(last=False)
        return wait_s


class Rates:
    """The rates of callers, and of those whose keys are wrong."""

    def __init__(self, rate: float, burst: int) -> None:
        """`rate` requests a second for each caller, `burst` at once; 0 is no limit, for wrong keys neither."""
        self._callers = Buckets(rate, burst)
        self._failures = Buckets(_FAILURES_PER_S if rate else 0.0, _FAILURES_BURST)

    def count(self, caller: str) -> None:
        """One more request of a caller. Raises a 429 problem."""
        _check(self._callers.take(caller), "You ask more often than this server allows")

    def count_failure(self, host: str) -> None:
        """One more wrong key from a host. Raises a 429 problem; keys that are right are never kept waiting for it."""
        _check(self._failures.take(host), "Too many wrong keys come from your address")


def _check(wait_s: float, what: str) -> None:
    if wait_s:
        raise Trouble(TOO_MANY, what, retry_after_s=max(1, math.ceil(wait_s)))


class BodyLimit:
    """ASGI middleware: a body of more than `body_max` bytes is a 413, whether its length is announced or not."""

    def __init__(self, app: ASGIApp, body_max: int) -> None:
        self._app = app
        self._body_max = body_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is small enough."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        trouble = Trouble(TOO_LARGE, f"The body has more than {self._body_max:,} bytes; send it in parts")
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if announced.isdigit() and int(announced) > self._body_max:
            response = answer(scope["path"], trouble)
            response.headers["connection"] = "close"  # nobody will read the rest of it
            await response(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self._body_max:
                    raise HTTPException(413, trouble.detail)  # the one kind that FastAPI lets through while it reads
            return message

        await self._app(scope, counted, send)
