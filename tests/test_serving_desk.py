"""Blocking work for a server: in turn, so many at once, and ended when nobody waits for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from threading import Event as Flag
from typing import Any

import pytest

from edge_sdk.errors import EngineError, RequestError
from edge_sdk.serving.desk import Desk

Work = Callable[[Flag], Iterator[int]]


def counting(*numbers: int) -> Work:
    return lambda cancel: iter(numbers)


def until_cancelled(started: list[str], name: str) -> Work:
    def work(cancel: Flag) -> Iterator[int]:
        started.append(name)
        yield 1
        assert cancel.wait(20)
        time.sleep(0.05)  # an engine leaves at its next token
        started.append(f"{name} over")

    return work


async def all_of(items: AsyncGenerator[list[Any], None]) -> list[Any]:
    return [item async for some in items for item in some]


async def true(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.005)


def test_items_come_in_order_and_errors_as_they_were_raised() -> None:
    def failing(cancel: Flag) -> Iterator[int]:
        yield 1
        raise EngineError("no")

    async def run() -> None:
        desk: Desk[int] = Desk(1, 0)
        assert await all_of(desk.items(counting(1, 2, 3))) == [1, 2, 3]
        with pytest.raises(EngineError):
            await all_of(desk.items(failing))
        await true(lambda: desk.here == 0)
        assert await all_of(desk.items(counting(4))) == [4], "a failure leaves the place free"

    asyncio.run(run())


def test_no_more_run_than_may_and_the_others_in_the_order_in_which_they_came() -> None:
    async def run() -> None:
        desk: Desk[int] = Desk(2, 10)
        running, most, order = 0, 0, list[int]()
        lock = threading.Lock()

        def work(number: int) -> Work:
            def do(cancel: Flag) -> Iterator[int]:
                nonlocal running, most
                with lock:
                    running, most = running + 1, max(most, running + 1)
                    order.append(number)
                time.sleep(0.03)
                with lock:
                    running -= 1
                yield number

            return do

        found = await asyncio.gather(*(all_of(desk.items(work(number))) for number in range(6)))
        assert found == [[number] for number in range(6)]
        assert most == 2
        assert all(abs(number - at) <= 1 for at, number in enumerate(order)), "two at once may begin in any order"

    asyncio.run(run())


def test_what_nobody_waits_for_is_ended_and_the_next_begins_once_it_has() -> None:
    async def run() -> None:
        desk: Desk[int] = Desk(1, 5)
        log: list[str] = []
        async with aclosing(desk.items(until_cancelled(log, "first"))) as first:
            assert await anext(first) == [1]
            second = asyncio.ensure_future(all_of(desk.items(counting(7))))
            await asyncio.sleep(0.05)
            assert not second.done(), "there is one place"
        assert await second == [7]
        assert log == ["first", "first over"]

    asyncio.run(run())


def test_who_goes_away_while_waiting_is_never_begun() -> None:
    async def run() -> None:
        desk: Desk[int] = Desk(1, 5)
        log: list[str] = []
        async with aclosing(desk.items(until_cancelled(log, "first"))) as first:
            await anext(first)
            waiting = asyncio.ensure_future(all_of(desk.items(until_cancelled(log, "second"))))
            await asyncio.sleep(0.02)
            assert desk.here == 2
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert desk.here == 1
        await true(lambda: desk.here == 0)
        assert log == ["first", "first over"]

    asyncio.run(run())


def test_too_many_are_told_to_come_again() -> None:
    async def run() -> None:
        desk: Desk[int] = Desk(1, 1)
        log: list[str] = []
        async with aclosing(desk.items(until_cancelled(log, "first"))) as first:
            await anext(first)
            second = asyncio.ensure_future(all_of(desk.items(counting(2))))
            await asyncio.sleep(0.02)
            with pytest.raises(RequestError, match="2 requests run or wait") as caught:
                await all_of(desk.items(counting(3)))
            assert caught.value.status == 503
        assert await second == [2]

    asyncio.run(run())


def test_what_comes_while_the_loop_is_busy_comes_together() -> None:
    def work(cancel: Flag) -> Iterator[int]:
        for number in range(2000):
            if number == 1000:
                time.sleep(0.05)
            yield number

    async def run() -> None:
        desk: Desk[int] = Desk(1, 0)
        found = []
        async for some in desk.items(work):
            found.append(some)
            time.sleep(0.02)
        assert [item for some in found for item in some] == list(range(2000))
        assert len(found) < 200

    asyncio.run(run())


def test_silence_is_told_and_nothing_is_lost_by_it() -> None:
    def slow(cancel: Flag) -> Iterator[int]:
        for number in range(3):
            time.sleep(0.1)
            yield number

    async def run() -> None:
        desk: Desk[int] = Desk(1, 0, alive=0.02)
        found = [some async for some in desk.items(slow)]
        assert [item for some in found for item in some] == [0, 1, 2]
        assert found.count([]) >= 3

    asyncio.run(run())


def test_closing_ends_what_runs_and_takes_nothing_more() -> None:
    async def run() -> None:
        desk: Desk[int] = Desk(1, 5)
        log: list[str] = []
        running = asyncio.ensure_future(all_of(desk.items(until_cancelled(log, "first"))))
        await true(lambda: bool(log))
        await desk.close(10)
        assert log == ["first", "first over"]
        with pytest.raises(RequestError, match="is ending"):
            await running
        with pytest.raises(RequestError, match="is ending"):
            await all_of(desk.items(counting(1)))

    asyncio.run(run())


def test_a_thread_that_cannot_start_costs_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    class Never(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    async def run() -> None:
        desk: Desk[int] = Desk(1, 5)
        with monkeypatch.context() as patch:
            patch.setattr("edge_sdk.serving.desk.Thread", Never)
            with pytest.raises(RequestError, match="no thread"):
                await all_of(desk.items(counting(1)))
        assert await all_of(desk.items(counting(2))) == [2]

    asyncio.run(run())


def test_what_is_no_ordinary_exception_reaches_whoever_waits() -> None:
    class Panic(BaseException):
        pass

    def panicking(cancel: Flag) -> Iterator[int]:
        yield 1
        raise Panic("a secret")

    async def run() -> None:
        desk: Desk[int] = Desk(1, 5)
        with pytest.raises(EngineError, match=r"unexpected Panic$"):
            await all_of(desk.items(panicking))
        assert await all_of(desk.items(counting(2))) == [2]

    asyncio.run(run())


def test_those_who_wait_are_told_that_it_closes() -> None:
    async def run() -> None:
        desk: Desk[int] = Desk(1, 5)
        log: list[str] = []
        running = asyncio.ensure_future(all_of(desk.items(until_cancelled(log, "first"))))
        await true(lambda: bool(log))
        waiting = asyncio.ensure_future(all_of(desk.items(counting(1))))
        await asyncio.sleep(0.01)
        await desk.close(10)
        with pytest.raises(RequestError, match="is ending"):
            await waiting
        with pytest.raises(RequestError, match="is ending"):
            await running

    asyncio.run(run())
