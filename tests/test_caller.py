"""The guarded call, on a real socket against a server that misbehaves, whose bill is held against the ledger."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock

import loopback
import pytest
from loopback import DONE, Behaviour, Exchange, Loopback, delta, head

from edge_sdk.errors import (
    BudgetError,
    ConfigError,
    OfflineError,
    RemoteError,
    RemotePausedError,
    RemoteProtocolError,
    RemoteRejectedError,
    RemoteTimeoutError,
    RemoteUnreachableError,
    StoreFullError,
)
from edge_sdk.fallback import ledger
from edge_sdk.fallback.breaker import Breaker
from edge_sdk.fallback.budget import Budget, Prices
from edge_sdk.fallback.caller import Call, Caller
from edge_sdk.fallback.ledger import Entry
from edge_sdk.fallback.remote import FakeRemote, OpenAIRemote, Remote, RemoteStream
from edge_sdk.records import Message, RemoteReply
from edge_sdk.storage.database import Database
from edge_sdk.storage.store import Store

PRICES = Prices.parse("1/2")
QUESTION = (Message("user", "What is the capital of France?"),)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Database]:
    with Store.open(tmp_path / "s.db") as store:
        yield store.database


def finish(call: Call) -> RemoteReply:
    for _ in call:
        pass
    return call.reply


def state(call: Call) -> tuple[str, str]:
    assert call.entry is not None
    return call.entry.state, call.entry.outcome


class Counting(FakeRemote):
    """A `FakeRemote` whose replies come with token counts."""

    def complete(self, *arguments: object, **keywords: object) -> RemoteStream:
        stream = super().complete(*arguments, **keywords)  # type: ignore[arg-type]

        def run() -> Generator[str, None, RemoteReply]:
            yield from stream
            reply = stream.reply
            return RemoteReply(reply.text, reply.model, reply.finish_reason, 20, 5, 1.0)

        return RemoteStream(run())


# --- the ledger's row -------------------------------------------------------------------------------


def test_a_call_is_reserved_while_it_runs_and_settled_at_the_servers_count(file: Database) -> None:
    remote = Counting(["Par", "is"])
    caller = Caller(remote, file, prices=PRICES)
    call = caller.stream(QUESTION, max_tokens=9, characters={"question": 30}, entities={"EMAIL": 1})
    assert (call.entry, remote.requests) == (None, []), "nothing happens before it is iterated"
    assert next(call) == "Par"
    assert state(call) == ("reserved", "")
    assert "".join(call) == "is"
    assert call.reply.text == "Paris"
    assert state(call) == ("settled", "stop")
    assert call.entry is not None
    assert (call.entry.micro, call.entry.prompt_tokens, call.entry.completion_tokens) == (30, 20, 5)
    assert (call.entry.characters, call.entry.entities) == ({"question": 30}, {"EMAIL": 1})
    assert remote.keys == [call.id]


def test_the_reservation_is_an_upper_bound_and_its_hash_is_that_of_the_bytes_sent(file: Database) -> None:
    import hashlib

    with Loopback(loopback.completion("Paris")) as server:
        call = Caller(OpenAIRemote(server.url, "m"), file, prices=PRICES).stream(QUESTION, max_tokens=9)
        finish(call)
        (request,) = server.requests
    assert call.entry is not None
    assert call.entry.prompt_tokens == len(request.body)
    assert call.entry.payload_sha256 == hashlib.sha256(request.body).hexdigest()
    assert request.headers["idempotency-key"] == call.id
    assert b"France" not in file.path.read_bytes()


def test_a_reply_without_counts_or_with_counts_of_nothing_stays_at_the_reserved_price(file: Database) -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": 0}
    for served in (loopback.document("Paris"), loopback.document("Paris", usage=usage)):
        with Loopback(served) as server:
            call = Caller(OpenAIRemote(server.url, "m"), file, prices=PRICES).stream(QUESTION, max_tokens=9)
            assert finish(call).text == "Paris"
        assert state(call) == ("unknown", "stop")
        assert call.entry is not None
        assert call.entry.completion_tokens == 9


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (RemoteUnreachableError("no route"), "released"),
        (OfflineError("offline"), "released"),
        (ConfigError("no key"), "released"),
        (RemoteRejectedError("bad", status=400), "released"),
        (RemoteRejectedError("busy", status=429), "released"),
        (RemoteRejectedError("down", status=503), "released"),
        (RemoteRejectedError("broken", status=500), "unknown"),
        (RemoteTimeoutError("silence"), "unknown"),
        (RemoteProtocolError("cut"), "unknown"),
    ],
)
def test_only_what_certainly_cost_nothing_is_released(file: Database, error: RemoteError, ends: str) -> None:
    call = Caller(FakeRemote(error), file, prices=PRICES).stream(QUESTION, max_tokens=9)
    with pytest.raises(type(error)):
        finish(call)
    assert state(call) == (ends, type(error).__name__)


def test_a_call_that_is_closed_or_cancelled_in_the_middle_stays_at_the_reserved_price(file: Database) -> None:
    caller = Caller(FakeRemote(["a", "b"], ["a", "b"], ["never"]), file, prices=PRICES)
    call = caller.stream(QUESTION, max_tokens=9)
    next(call)
    call.close()
    assert state(call) == ("unknown", "abandoned")
    cancel = Event()
    call = caller.stream(QUESTION, max_tokens=9, cancel=cancel)
    next(call)
    cancel.set()
    assert finish(call).finish_reason == "cancelled"
    assert state(call) == ("unknown", "cancelled")
    call = caller.stream(QUESTION, max_tokens=9)
    call.close()
    assert call.entry is None, "it was never sent"


# --- nothing is sent --------------------------------------------------------------------------------


def test_without_room_in_the_budget_nothing_is_sent(file: Database) -> None:
    remote = FakeRemote(["x"] * 3, ["x"] * 3)
    caller = Caller(remote, file, Budget.parse("1calls/day"))
    assert caller.obstacle(QUESTION, max_tokens=9) is None
    finish(caller.stream(QUESTION, max_tokens=9))
    assert isinstance(caller.obstacle(QUESTION, max_tokens=9), BudgetError)
    call = caller.stream(QUESTION, max_tokens=9)
    with pytest.raises(BudgetError, match="0 calls left of 1 call"):
        finish(call)
    assert (call.entry, len(remote.requests)) == (None, 1)


def test_a_budget_in_money_needs_prices(file: Database) -> None:
    with pytest.raises(ConfigError, match="no prices"):
        Caller(FakeRemote(), file, Budget.parse("1/day"))


def test_when_the_ledger_cannot_be_written_nothing_is_sent(file: Database) -> None:
    remote = FakeRemote(["x"])
    with Store.open(file.path, read_only=True) as store, pytest.raises(BudgetError, match="nothing was sent"):
        finish(Caller(remote, store.database).stream(QUESTION, max_tokens=9))
    with Store.open(file.path, busy_timeout=0.1) as store, file.writing():
        call = Caller(remote, store.database).stream(QUESTION, max_tokens=9)
        with pytest.raises(BudgetError, match=r"nothing was sent: .* locked"):
            finish(call)
    assert remote.requests == []


def test_a_reply_is_not_lost_when_the_ledger_fails_afterwards(
    file: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreFullError("the disk is full")

    monkeypatch.setattr(ledger, "settle", full)
    call = Caller(Counting(["Paris"]), file, prices=PRICES).stream(QUESTION, max_tokens=9)
    assert finish(call).text == "Paris"
    assert state(call) == ("reserved", "")
    with file.reading() as sql:
        assert ledger.spent(sql, 0).calls == 1


def test_a_remote_that_keeps_failing_is_left_alone_then_asked_once(file: Database) -> None:
    now = [1000.0]
    failures = [RemoteUnreachableError("no route")] * 4
    remote = FakeRemote(*failures, ["well"], ["well"])
    caller = Caller(remote, file, breaker=Breaker(failures=3, cooldown=30), clock=lambda: now[0])
    for _ in range(3):
        with pytest.raises(RemoteUnreachableError):
            finish(caller.stream(QUESTION, max_tokens=9))
    other = Caller(remote, file, breaker=caller.breaker, clock=caller.clock)  # as another process finds it
    with pytest.raises(RemotePausedError, match="tried again in 30 s") as error:
        finish(other.stream(QUESTION, max_tokens=9))
    assert error.value.seconds == 30
    assert isinstance(caller.obstacle(QUESTION, max_tokens=9), RemotePausedError)
    now[0] += 30
    probe = other.stream(QUESTION, max_tokens=9)
    with pytest.raises(RemoteUnreachableError):
        finish(probe)
    now[0] += 59
    with pytest.raises(RemotePausedError):
        finish(other.stream(QUESTION, max_tokens=9))
    now[0] += 1
    probe = other.stream(QUESTION, max_tokens=9)
    next(probe)
    with pytest.raises(RemotePausedError):
        finish(caller.stream(QUESTION, max_tokens=9))
    finish(probe)
    assert finish(caller.stream(QUESTION, max_tokens=9)).text == "well"
    assert len(remote.requests) == 6


def test_a_call_without_room_in_the_budget_does_not_use_up_the_probe(file: Database) -> None:
    now = [1000.0]
    remote = FakeRemote(RemoteUnreachableError("no route"), ["well"])
    rules = Breaker(failures=1, cooldown=30)
    with pytest.raises(RemoteUnreachableError):
        finish(Caller(remote, file, breaker=rules, clock=lambda: now[0]).stream(QUESTION, max_tokens=9))
    now[0] += 30
    poor = Caller(remote, file, Budget.parse("1tokens/request"), breaker=rules, clock=lambda: now[0])
    with pytest.raises(BudgetError):
        finish(poor.stream(QUESTION, max_tokens=9))
    assert finish(Caller(remote, file, breaker=rules, clock=lambda: now[0]).stream(QUESTION, max_tokens=9)).text


def test_a_refused_request_is_no_failure_of_the_remote(file: Database) -> None:
    remote = FakeRemote(*[RemoteRejectedError("bad", status=400)] * 4)
    caller = Caller(remote, file, breaker=Breaker(failures=2))
    for _ in range(4):
        with pytest.raises(RemoteRejectedError):
            finish(caller.stream(QUESTION, max_tokens=9))


def test_a_pause_that_the_server_asks_for_is_kept(file: Database) -> None:
    busy = RemoteRejectedError("busy", status=429, retry_after=120.0)
    caller = Caller(FakeRemote(busy), file, clock=lambda: 1000.0)
    with pytest.raises(RemoteRejectedError):
        finish(caller.stream(QUESTION, max_tokens=9))
    with pytest.raises(RemotePausedError, match="120 s"):
        finish(caller.stream(QUESTION, max_tokens=9))


# --- a server that misbehaves, and what it bills ----------------------------------------------------

DEADLINE = 0.3
PIECES = ("The ", "capital ", "is ", "Paris", ".")


class Biller:
    """What a server served: prompt tokens (its words) and one for each piece that it began to send, by request."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.bills: list[tuple[str, int, int]] = []  # key, prompt tokens, completion tokens

    def bill(self, exchange: Exchange, completion: int) -> None:
        prompt = sum(len(message["content"].split()) for message in exchange.request.json["messages"])
        with self._lock:
            self.bills.append((exchange.request.headers["idempotency-key"], prompt, completion))

    def audit(self, entries: Sequence[Entry]) -> list[str]:
        """What is wrong with a ledger, in the eyes of the server that served the calls."""
        rows, wrong = {entry.id: entry for entry in entries}, []
        for key, times in Counter(key for key, _, _ in self.bills).items():
            if times > 1:
                wrong.append(f"{key} was served {times} times")
        for key, prompt, completion in self.bills:
            row = rows.get(key)
            if row is None:
                wrong.append(f"{key} was served and is not in the ledger")
            elif row.micro < PRICES.cost(prompt, completion):
                wrong.append(f"{key} cost more than the ledger has ({row.state})")
        return wrong


def faulty(biller: Biller) -> Behaviour:
    """Answers in the way that the model's name asks for, and bills what it worked on, whether or not it arrives."""

    def behave(exchange: Exchange) -> None:
        kind = exchange.request.json["model"]
        if kind in ("429", "400", "503"):
            loopback.answer(int(kind), '{"error": "no"}')(exchange)
            return
        usage = {"prompt_tokens": 7, "completion_tokens": len(PIECES)}
        biller.bill(exchange, len(PIECES))
        body = [head(), *map(delta, PIECES)]
        ways: dict[str, Behaviour] = {
            "500": loopback.answer(500, '{"error": "broke while it worked"}'),
            "cancelled": loopback.completion(*PIECES),
            "well": loopback.raw(
                *body, delta(finish="stop"), loopback.event({"choices": [], "usage": usage}), DONE
            ),
            "no usage": loopback.completion(*PIECES),
            "document": loopback.document("".join(PIECES), usage=usage),
            "cut before": loopback.reset(),
            "cut in the head": loopback.reset(head()[:25]),
            "cut within": loopback.reset(*body[:3]),
            "ended within": loopback.raw(*body[:4]),
            "bad SSE": loopback.raw(head(), b"data: {]\n\n" * 3),
            "error event": loopback.raw(*body[:2], loopback.event({"error": {"message": "overloaded"}})),
            "hang": loopback.hang(),
            "hang within": loopback.hang(*body[:3]),
            "drip": loopback.drip([head()] + [b": still here\n"] * 1000, 0.02),
            "HTML": loopback.answer(200, "<html>Sign in</html>", "text/html"),
        }
        ways[kind](exchange)

    return behave


KINDS = (
    ["well"] * 3
    + ["no usage", "document", "429", "400", "503", "500", "cut before", "cut in the head", "cut within"]
    + ["ended within", "bad SSE", "error event", "HTML", "hang", "hang within", "drip", "refused", "cancelled"]
)


def campaign(file: Database, calls: int, remote_of: type[Remote] | None = None) -> tuple[Biller, Counter[str]]:
    """Many calls, each of a kind; returns what was billed and how they ended."""
    biller, ends, random_kinds = Biller(), Counter[str](), random.Random(5)
    kinds = [*KINDS, *random_kinds.choices(KINDS, k=max(0, calls - len(KINDS)))][:calls]
    random_kinds.shuffle(kinds)
    nobody = socket.create_server(("127.0.0.1", 0))
    port = nobody.getsockname()[1]
    nobody.close()
    with Loopback(faulty(biller)) as server:
        for kind in kinds:
            limits = {"connect_timeout": 0.2, "first_byte_timeout": 0.2, "inter_token_timeout": 0.15}
            url = f"http://127.0.0.1:{port}" if kind == "refused" else server.url
            remote: Remote = OpenAIRemote(url, kind, deadline=DEADLINE, include_usage=True, **limits)
            if remote_of is not None:
                remote = remote_of(remote)  # type: ignore[call-arg]
            cancel = Event()
            # Without a breaker: it would spare the server most of this.
            caller = Caller(remote, file, Budget.parse("1000/day"), PRICES, Breaker(failures=10**9, cooldown=0))
            call = caller.stream(QUESTION, max_tokens=16, cancel=cancel)
            began = time.monotonic()
            try:
                for _ in call:
                    if kind == "cancelled":
                        cancel.set()
                ends[call.reply.finish_reason] += 1
                assert kind in ("well", "no usage", "document", "cancelled"), kind
            except RemoteError as error:
                ends[type(error).__name__] += 1
            elapsed = time.monotonic() - began
            assert elapsed < DEADLINE + 1.0, f"{kind} took {elapsed:.2f} s"
            assert call.entry is not None and call.entry.state != "reserved", kind
    return biller, ends


def entries(file: Database) -> list[Entry]:
    with file.reading() as sql:
        return ledger.latest(sql, 10_000)


def check_campaign(file: Database, calls: int) -> None:
    biller, ends = campaign(file, calls)
    rows = entries(file)
    assert len(rows) == calls == ends.total()
    assert biller.audit(rows) == []
    assert {
        "stop",
        "cancelled",
        "RemoteUnreachableError",
        "RemoteTimeoutError",
        "RemoteProtocolError",
    } <= ends.keys()
    states = Counter(row.state for row in rows)
    assert states["settled"] > 0 < states["released"] and states["reserved"] == 0
    billed = sum(PRICES.cost(prompt, completion) for _, prompt, completion in biller.bills)
    assert sum(row.micro for row in rows) >= billed


def test_against_a_faulty_server_every_end_is_typed_in_time_and_billed_once(file: Database) -> None:
    check_campaign(file, 100)


@pytest.mark.campaign
def test_a_thousand_calls_against_a_faulty_server(file: Database) -> None:
    check_campaign(file, 1000)


class Retrying:
    """What must never be built: a remote that asks again when a call has failed."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self.model, self.url, self.deadline, self.preview = (
            remote.model,
            remote.url,
            remote.deadline,
            remote.preview,
        )

    def complete(self, *arguments: object, **keywords: object) -> RemoteStream:
        def run() -> Generator[str, None, RemoteReply]:
            try:
                stream = self._remote.complete(*arguments, **keywords)  # type: ignore[arg-type]
                yield from stream
            except RemoteProtocolError:
                stream = self._remote.complete(*arguments, **keywords)  # type: ignore[arg-type]
                yield from stream
            return stream.reply

        return RemoteStream(run())


def test_sabotage_a_remote_that_retries_is_caught_by_the_biller(file: Database) -> None:
    biller, _ = campaign(file, 30, Retrying)
    assert any("was served 2 times" in line for line in biller.audit(entries(file)))


def test_sabotage_a_ledger_that_forgets_what_a_cut_call_cost_is_caught_by_the_biller(
    file: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "leave_unknown", ledger.release)
    biller, _ = campaign(file, 30)
    assert any("cost more than the ledger has" in line for line in biller.audit(entries(file)))


def test_the_json_of_a_request_is_longer_than_its_tokens_can_be(file: Database) -> None:
    body = FakeRemote().preview((Message("user", "é" * 10),), max_tokens=1)
    assert len(body) > 20
    assert json.loads(body)["messages"][0]["content"] == "é" * 10


def test_threads_that_share_a_caller_share_its_budget(file: Database) -> None:
    with Loopback(loopback.completion("Paris")) as server:
        caller = Caller(OpenAIRemote(server.url, "m"), file, Budget.parse("3calls/day"))

        def ask(_: int) -> bool:
            try:
                return finish(caller.stream(QUESTION, max_tokens=9)).text == "Paris"
            except BudgetError:
                return False

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(ask, range(16))) == 3
        assert len(server.requests) == 3


KILLED = """
import sys
from edge_sdk.fallback.caller import Caller
from edge_sdk.fallback.remote import OpenAIRemote
from edge_sdk.records import Message
from edge_sdk.storage.store import Store

with Store.open(sys.argv[1]) as store:
    caller = Caller(OpenAIRemote(sys.argv[2], "m"), store.database)
    for piece in caller.stream((Message("user", "Who?"),), max_tokens=9):
        print(piece, flush=True)
"""


def test_a_process_that_is_killed_within_a_call_leaves_its_cost_behind(file: Database) -> None:
    with Loopback(loopback.hang(head(), delta("Par"))) as server:
        root = Path(ledger.__file__).parents[2]
        arguments = [sys.executable, "-c", KILLED, str(file.path), server.url]
        with subprocess.Popen(arguments, cwd=root, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "Par\n"
            worker.kill()
    (row,) = entries(file)
    assert (row.state, row.completion_tokens) == ("reserved", 9)
    with pytest.raises(BudgetError):
        finish(Caller(FakeRemote(["x"]), file, Budget.parse("1calls/day")).stream(QUESTION, max_tokens=9))
