"""The parts that keep a worker quick under load: the queue with its end, turns, and token buckets."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import limits
from server.turns import WAIT_S, Turn
from server.work import Overloaded, Work


async def test_what_does_not_fit_is_refused_before_it_begins() -> None:
    """Of five calls at once with one thread and a queue of two, three run and two are refused; then there is room again."""
    work, go = Work(threads=1, queue=2), threading.Event()
    calls = [asyncio.ensure_future(work.run(go.wait, 10)) for _ in range(5)]
    await asyncio.sleep(0.05)
    go.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results.count(True) == 3 and sum(isinstance(one, Overloaded) for one in results) == 2
    assert await work.run(lambda: 7) == 7 and work.waiting == 0
    work.close()


async def test_who_went_away_while_waiting_costs_nothing() -> None:
    """A cancelled call that had not begun is never made; one that had begun keeps its place until it ends."""
    work, go = Work(threads=1, queue=2), threading.Event()
    made: list[int] = []
    first = asyncio.ensure_future(work.run(go.wait, 10))
    second = asyncio.ensure_future(work.run(made.append, 1))
    await asyncio.sleep(0.05)
    second.cancel()
    first.cancel()
    await asyncio.sleep(0)
    assert work.waiting == 2
    go.set()
    await work.run(int)  # there is one thread: those before it are through
    assert made == [] and work.waiting == 0
    work.close()


async def test_an_error_is_the_callers() -> None:
    """Whatever a call raises, its caller gets."""
    work = Work(threads=1, queue=1)
    with pytest.raises(ZeroDivisionError):
        await work.run(lambda: 1 / 0)
    work.close()


def _at_once(turn: Turn, aside: bool, seconds: float, count: int = 4) -> int:
    """How many of `count` threads were inside at once."""
    inside, most, guard = 0, 0, threading.Lock()

    def compute() -> None:
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        time.sleep(seconds)
        with guard:
            inside -= 1

    def call() -> None:
        with turn.taken():
            if aside:
                with turn.given_up():
                    compute()
            else:
                compute()

    threads = [threading.Thread(target=call) for _ in range(count)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return most


def test_one_computes_at_a_time() -> None:
    """Short calls follow one another."""
    assert _at_once(Turn(), aside=False, seconds=WAIT_S / 20) == 1


def test_who_embeds_is_out_of_the_way() -> None:
    """All embed at once."""
    assert _at_once(Turn(), aside=True, seconds=0.3) == 4


def test_a_call_that_is_stuck_holds_up_the_others_a_moment_only() -> None:
    """The next goes on without a turn; when the stuck one ends, turns are as before."""
    turn, go = Turn(), threading.Event()

    def stuck() -> None:
        with turn.taken():
            go.wait(10)

    holder = threading.Thread(target=stuck)
    holder.start()
    time.sleep(0.05)
    began = time.monotonic()
    with turn.taken():
        waited = time.monotonic() - began
    go.set()
    holder.join()
    assert WAIT_S <= waited < 5
    assert _at_once(turn, aside=False, seconds=WAIT_S / 20) == 1


@given(
    rate=st.floats(0.1, 100),
    burst=st.integers(1, 50),
    pauses_s=st.lists(st.floats(0, 2), max_size=100),
)
def test_a_bucket_never_gives_more_than_burst_and_rate(rate: float, burst: int, pauses_s: list[float]) -> None:
    """In any time t at most burst + rate * t requests pass, and who waits as long as told passes."""
    moment = 1000.0
    buckets = limits.Buckets(rate, burst)
    passed, since = 0, moment
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: moment)
        for pause_s in pauses_s:
            moment += pause_s
            wait_s = buckets.take("ann")
            if not wait_s:
                passed += 1
            else:
                moment += wait_s + 1e-6
                assert not buckets.take("ann")
                passed += 1
            assert passed <= burst + rate * (moment - since) + 1e-6
        assert not limits.Buckets(0, burst).take("ann")
