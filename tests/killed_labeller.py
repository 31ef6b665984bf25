"""The program that `test_kept` kills: it forks a labeller for each order, so that one starts within milliseconds.

An order is a line of JSON; the answers are `start PID` and, when the labeller has ended or is dead, `end STATUS`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import httpx  # noqa: F401  loaded before the fork
from teachers import requests_of

from quantize.teachers.endpoint_teacher import EndpointTeacher
from quantize.teachers.kept import Kept
from quantize.teachers.teacher import Reply


class Hoarding(Kept):
    """The sabotage: writes replies down ten at a time."""

    hoard: list[tuple[str, str, Reply, float]]

    def _keep(self, fingerprint: str, key: str, reply: Reply, seconds: float) -> Reply:
        self.hoard = [*getattr(self, "hoard", []), (fingerprint, key, reply, seconds)]
        if len(self.hoard) == 10:
            for each in self.hoard:
                super()._keep(*each)
            self.hoard = []
        return reply


def label(order: dict[str, object]) -> None:
    kind = Hoarding if order["sabotage"] else Kept
    with kind(Path(str(order["path"]))) as kept:
        teacher = EndpointTeacher(
            str(order["url"]), "m", ledger=kept.ledger, concurrency=int(str(order["at_once"]))
        )
        kept.ask(teacher, requests_of(*map(str, order["questions"])))  # type: ignore[call-overload]


def main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            label(json.loads(line))
            os._exit(0)
        print("start", pid, flush=True)
        print("end", os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
