"""A load of keep-alive clients, as cheap as Python can be: it shares the cores with what it measures.

Each client is a protocol that sends whole requests made beforehand, one after the other, and looks at no more of an answer
than its status and length. Run as a process of its own: `python -m tests.bench_server.load` reads its job from standard
input as JSON and prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from typing import Any, NamedTuple

import uvloop


class Load(NamedTuple):
    """What came of a load."""

    requests: int
    seconds: float
    per_second: float
    p50_ms: float
    p99_ms: float
    errors: int
    processor_share: float  # of one core, that the load itself took

    @classmethod
    def of(cls, latencies_s: list[float], seconds: float, errors: int, share: float) -> Load:
        """From each request's latency."""
        ordered = sorted(latencies_s)
        count = len(ordered)
        at50, at99 = (ordered[min(count - 1, int(count * part))] * 1e3 for part in (0.5, 0.99)) if count else (0.0, 0.0)
        return cls(
            count, round(seconds, 2), round(count / seconds, 1), round(at50, 2), round(at99, 2), errors, round(share, 2)
        )


class _Client(asyncio.Protocol):
    def __init__(self, requests: list[bytes], first: int, step: int, until: list[float], done: asyncio.Future[None]) -> None:
        self._requests, self._next, self._step, self._until, self._done = requests, first, step, until, done
        self._transport: Any = None
        self._sent = 0.0
        self._buffer = b""
        self._missing = -1  # bytes of the answer that have not come; -1: its head is not whole
        self.latencies_s: list[float] = []
        self.errors = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._requests[self._next % len(self._requests)])
        self._next += self._step

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            stop = head.find(b"\r", at)
            length = int(head[at + 15 : stop if stop >= 0 else None])
            self.errors += not head.startswith(b"http/1.1 200")
            self._missing = length - (len(self._buffer) - end - 4)
        else:
            self._missing -= len(data)
        if self._missing == 0:
            now = time.perf_counter()
            self.latencies_s.append(now - self._sent)
            self._buffer, self._missing = b"", -1
            if now < self._until[0]:
                self._send()
            else:
                self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)


async def _run(port: int, requests: list[bytes], clients: int, seconds: float, warm_s: float) -> Load:
    loop = asyncio.get_running_loop()
    for length in (warm_s, seconds) if warm_s else (seconds,):
        until = [time.perf_counter() + length + 0.1]
        protocols, ends = [], []
        began, began_cpu = time.perf_counter(), time.process_time()
        for number in range(clients):
            done: asyncio.Future[None] = loop.create_future()
            client = _Client(requests, number * 37, clients, until, done)
            await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
            protocols.append(client)
            ends.append(done)
        await asyncio.gather(*ends)
        passed, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    latencies = [one for client in protocols for one in client.latencies_s]
    return Load.of(latencies, passed, sum(one.errors for one in protocols), cpu / passed)


def load(port: int, requests: list[bytes], clients: int = 8, seconds: float = 10.0, warm_s: float = 2.0) -> Load:
    """Run a load in a process of its own."""
    job = {"port": port, "requests": [b64encode(one).decode() for one in requests], "clients": clients}
    job |= {"seconds": seconds, "warm_s": warm_s}
    command = [sys.executable, "-m", "tests.bench_server.load"]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=True)
    return Load(**json.loads(done.stdout))


if __name__ == "__main__":
    given = json.load(sys.stdin)
    given["requests"] = [b64decode(one) for one in given["requests"]]
    print(json.dumps(uvloop.run(_run(**given))._asdict()))
