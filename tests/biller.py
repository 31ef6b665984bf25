"""A server that bills: it knows what it has served how often, and may be told what to do at a certain request."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from threading import Lock

from loopback import DONE, Exchange, Loopback, delta, event, head


class Biller(Loopback):
    """Answers a question with its capitals; `billed` counts by question, `by_key` by idempotency key.

    `meanwhile` is called with the number of the request, from 1, before it is billed and after it was answered.
    """

    def __init__(
        self, meanwhile: Callable[[int, str, Exchange], None] = lambda number, when, exchange: None
    ) -> None:
        super().__init__(self._answer)
        self._meanwhile, self._turn, self._number = meanwhile, Lock(), 0
        self.billed: Counter[str] = Counter()
        self.by_key: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0

    def _answer(self, exchange: Exchange) -> None:
        question = str(exchange.request.json["messages"][-1]["content"])
        with self._turn:
            self._number += 1
            number = self._number
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            self._meanwhile(number, "before", exchange)
            with self._turn:
                self.billed[question] += 1
                self.by_key[exchange.request.headers["idempotency-key"]] += 1
            exchange.send(reply(question.upper()))
            self._meanwhile(number, "after", exchange)
        finally:
            with self._turn:
                self.at_once -= 1


def reply(text: str, prompt_tokens: int = 20, completion_tokens: int = 2) -> bytes:
    """A streamed reply with logprobs and token counts."""
    rows = [{"token": "t", "logprob": -0.25}] * completion_tokens
    told = {"choices": [{"index": 0, "delta": {}, "finish_reason": None, "logprobs": {"content": rows}}]}
    usage = {"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}}
    return head() + delta(text) + event(json.dumps(told)) + delta(finish="stop") + event(usage) + DONE
