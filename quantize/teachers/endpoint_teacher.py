"""A teacher that is any OpenAI-compatible server: many requests at once, within a rate and a budget.

Every call is written down at its full price before it is made, through `fallback.caller`. What certainly was not
served is asked again; what may have been served, and billed, only where the server is known to bill a request once.
Knows nothing of where replies are kept.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event

from edge_sdk.engines.engine import check_options
from edge_sdk.errors import (
    BudgetError,
    ConfigError,
    EdgeError,
    OfflineError,
    RemoteError,
    RemotePausedError,
    RemoteProtocolError,
    RemoteRejectedError,
    RemoteTimeoutError,
    RemoteUnreachableError,
)
from edge_sdk.fallback.breaker import Breaker
from edge_sdk.fallback.budget import MICRO, Budget, Prices
from edge_sdk.fallback.caller import Call, Caller
from edge_sdk.fallback.ledger import Transactions
from edge_sdk.fallback.remote import OpenAIRemote, may_be_billed
from edge_sdk.records import FinishReason, GenerateOptions

from .rate import Rate, Window
from .teacher import Reply, Request

_POLL = 0.1  # seconds between two looks at whether to stop
_LOOK = 1.0  # seconds between two looks at a remote that is left alone
_LONGEST_BACKOFF = 30.0
_MOST_FAILURES = 5  # in a row, with no reply between them
_BYTES_A_TOKEN = 4  # for the rate alone; what is reserved in money counts every byte
_TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # another attempt may meet another end
_HOPELESS = {401, 402, 403, 404}  # no request will be served


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that has no reply, and why."""

    request: Request
    error: EdgeError


class EndpointTeacher:
    """`concurrency` requests at a time to one server, each sent, and billed, once.

    `ledger` holds what was spent and on what the `budget` is checked ("5.00/total"): `Kept.ledger`. `key` is called
    for each request, as for `OpenAIRemote`. `idempotent` says that the server bills requests with one
    `Idempotency-Key` once: then also those are sent again, for `patience` seconds, of which nobody knows whether
    they were served. `failures` are the requests of the last run that have no reply; five in a row end the run.

    >>> teacher = EndpointTeacher("http://127.0.0.1:8080", "model", ledger=kept.ledger)  # doctest: +SKIP
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        ledger: Transactions,
        key: Callable[[], str | None] | None = None,
        concurrency: int = 8,
        rate: Rate | None = None,
        budget: Budget | None = None,
        prices: Prices | None = None,
        logprobs: bool = True,
        idempotent: bool = False,
        deadline: float = 120.0,
        patience: float = 300.0,
        offline: bool = False,
    ) -> None:
        """`deadline` (seconds) is of one call. Raises `ConfigError`, also for a budget in money without prices."""
        if concurrency < 1 or not deadline > 0 or not patience >= 0:
            raise ConfigError(
                f"{concurrency} requests at a time, {deadline:g} s for each, {patience:g} s of patience",
                hint="use 1 or more requests and positive times",
            )
        self._url, self._model, self._key, self._offline = url, model, key, offline
        self._ledger, self._prices, self._budget = ledger, prices, budget or Budget()
        self._concurrency, self._window = concurrency, Window(rate or Rate())
        self._logprobs, self._idempotent = logprobs, idempotent
        self._deadline, self._patience = deadline, patience
        self.failures: list[Failure] = []
        self._address = self._remote(Request(())).url
        self._caller(Request(()))  # refuses a budget that cannot be kept

    @property
    def fingerprint(self) -> str:
        """Address and model: whether the server changes what it calls by that name is not known."""
        return f"endpoint {self._address} {self._model}"

    def replies(self, requests: Sequence[Request], cancel: Event | None = None) -> Iterator[tuple[int, Reply]]:
        """See `Teacher.replies`; what could not be answered is in `failures` and comes as no reply.

        Before an error is raised all calls under way have ended and their replies were given: they are paid for.
        Raises `BudgetError` where the budget has no room for another call, `RemoteRejectedError` for a key, an
        address or a model that the server refuses, the fifth failure in a row, `OfflineError` and `ConfigError`.
        """
        for request in requests:
            check_options(GenerateOptions(max_tokens=request.max_tokens, temperature=request.temperature))
        self.failures = []
        hang_up, waiting = Event(), deque(range(len(requests)))
        running: dict[Future[Reply], tuple[int, int]] = {}  # positions, and how many calls had ended before
        ended, in_a_row = 0, 0
        fatal: EdgeError | None = None
        room = True  # in the budget, as far as known
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="edge-teacher")
        try:
            while running or (waiting and not fatal):
                while room and waiting and not fatal and len(running) < self._concurrency:
                    position = waiting.popleft()
                    running[pool.submit(self._answer, requests[position], hang_up)] = position, ended
                done, _ = wait(running, timeout=_POLL, return_when=FIRST_COMPLETED)
                for future in done:
                    position, before = running.pop(future)
                    try:
                        reply = future.result()
                    except BudgetError as error:
                        # A call that ends makes room: it has reserved more than it costs.
                        waiting.appendleft(position)
                        room = not running
                        if room and ended == before:
                            fatal = fatal or error
                    except EdgeError as error:
                        self.failures.append(Failure(requests[position], error))
                        ended, in_a_row, room = ended + 1, in_a_row + 1, True
                        if _ends_all(error) or in_a_row >= _MOST_FAILURES:
                            fatal = fatal or error
                    else:
                        ended, in_a_row, room = ended + 1, 0, True
                        yield position, reply
                if cancel is not None and cancel.is_set():
                    return
            if fatal:
                raise fatal
        finally:
            hang_up.set()
            pool.shutdown(cancel_futures=True)

    def _answer(self, request: Request, hang_up: Event) -> Reply:
        """The reply to one request, after as many attempts as may be made. Runs in a thread of the pool."""
        caller, began, attempts = self._caller(request), time.monotonic(), 0
        tokens = request.max_tokens + sum(len(turn.content) for turn in request.messages) // _BYTES_A_TOKEN
        while True:
            while seconds := self._window.take(tokens):
                _pause(seconds, hang_up)
            try:
                return self._called(caller, request, hang_up)
            except RemotePausedError as error:
                if max(time.monotonic() - began, error.seconds) > self._patience:
                    raise
                _pause(min(error.seconds, _LOOK), hang_up)
            except RemoteError as error:
                attempts += 1
                backoff = min(0.25 * 2.0**attempts, _LONGEST_BACKOFF)
                if isinstance(error, RemoteRejectedError) and error.retry_after is not None:
                    backoff = error.retry_after
                late = time.monotonic() - began + backoff > self._patience
                if late or not _may_be_sent_again(error, idempotent=self._idempotent):
                    raise
                _pause(backoff, hang_up)

    def _called(self, caller: Caller, request: Request, hang_up: Event) -> Reply:
        call = caller.stream(
            request.messages,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            characters={"teacher": sum(len(turn.content) for turn in request.messages)},
            cancel=hang_up,
            idempotency_key=hashlib.sha256(f"{self.fingerprint} {request.key}".encode()).hexdigest(),
        )
        for _ in call:
            pass
        if call.reply.finish_reason == "cancelled":
            raise RemoteError("the teacher was not waited for")
        return _reply(call, bool(self._prices))

    def _remote(self, request: Request) -> OpenAIRemote:
        extra: dict[str, object] = {"logprobs": True} if self._logprobs else {}
        if request.temperature:
            extra["seed"] = request.seed
        if request.stop:
            extra["stop"] = list(request.stop)
        return OpenAIRemote(
            self._url,
            self._model,
            key=self._key,
            offline=self._offline,
            first_byte_timeout=self._deadline,
            inter_token_timeout=self._deadline,
            deadline=self._deadline,
            include_usage=True,
            extra=extra,
        )

    def _caller(self, request: Request) -> Caller:
        rules = Breaker(failures=_MOST_FAILURES, cooldown=2.0, longest=60.0)
        return Caller(self._remote(request), self._ledger, self._budget, self._prices, rules)


def _may_be_sent_again(error: RemoteError, *, idempotent: bool) -> bool:
    """Whether another attempt makes sense and costs nothing that one has not."""
    match error:
        case RemoteRejectedError(status=status):
            transient = status in _TRANSIENT
        case RemoteUnreachableError() | RemoteTimeoutError() | RemoteProtocolError():
            transient = True
        case _:
            transient = False
    return transient and (idempotent or not may_be_billed(error))


def _ends_all(error: EdgeError) -> bool:
    """Whether no other request would fare better."""
    if isinstance(error, RemoteRejectedError):
        return error.status in _HOPELESS or 300 <= error.status < 400
    return isinstance(error, OfflineError | ConfigError)


def _reply(call: Call, priced: bool) -> Reply:
    """A reply as others have it. Tokens that the server does not count are those with a logprob, or none."""
    found, entry = call.reply, call.entry
    reason: FinishReason = "length" if found.finish_reason == "length" else "stop"
    return Reply(
        found.text,
        reason,
        found.prompt_tokens or 0,
        found.completion_tokens or len(found.logprobs),
        found.logprobs,
        entry.micro / MICRO if priced and entry is not None else 0.0,
    )


def _pause(seconds: float, hang_up: Event) -> None:
    if hang_up.wait(seconds):
        raise RemoteError("the teacher was not waited for")
