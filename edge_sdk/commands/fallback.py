"""`edge spend` and `edge outbox`: what remote calls have cost, and the questions that wait for one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click

from ..config import Settings
from ..errors import ConfigError, EdgeError
from ..fallback import ledger
from ..fallback.budget import Budget, Spent, money, starts
from ..fallback.outbox import Outbox, Queued, refusals
from ..loading import existing_store, load_caller, load_policy
from ..records import RemoteReply
from .options import console, options, print_json


@click.command()
@click.option("-n", "--last", default=10, show_default=True, type=click.IntRange(0, 10_000), help="How many calls.")
@options("store", "budget")
def spend_command(settings: Settings, last: int, as_json: bool) -> None:
    """Show what remote calls have cost today and this month (UTC), and the last calls.

    A call counts at the most that it could cost until the server has said what it took, and for good where the
    reply was cut off. No text of any call is kept.
    """
    day, month = starts(time.time())
    budget = Budget.parse(settings.budget or "")
    with existing_store(settings) as store, store.database.reading() as sql:
        spent = {"day": ledger.spent(sql, day), "month": ledger.spent(sql, month)}
        calls = ledger.latest(sql, last)
    if as_json:
        totals = {name: _amounts(total) for name, total in spent.items()}
        print_json({"store": settings.store, **totals, "budget": budget, "calls": [_call(each) for each in calls]})
        return
    out = console()
    for name, total in spent.items():
        limit = getattr(budget, name)
        of = f" of {money(limit.micro)}" if limit.micro is not None else ""
        out.print(f"{name:<6} {money(total.micro)}{of}, {total.tokens} tokens, {total.calls} calls")
    for each in calls:
        what = ", ".join(f"{number} characters of {kind}" for kind, number in each.characters.items())
        out.print(
            f"{_when(each.reserved_at)}  {money(each.micro):>8}  {each.prompt_tokens}+{each.completion_tokens} "
            f"tokens  {each.state} ({each.outcome or 'under way'})  {each.remote}  {what}",
        )


@click.command()
@options("store")
def outbox_list_command(settings: Settings, as_json: bool) -> None:
    """List the questions that wait for the network, and what became of the others."""
    with _outbox(settings) as outbox:
        questions = outbox.questions()
    if as_json:
        print_json({"store": settings.store, "questions": questions})
        return
    for each in questions:
        _show(each)
    console().print(f"{len(questions)} questions in {settings.store}")


@click.command()
@click.option("--due", is_flag=True, help="Only those whose time for another try has come.")
@click.option("--yes", is_flag=True, help="In privacy mode `ask`: agree to each.")
@options("store", "remote", "remote_model", "remote_key_file", "remote_prices", "budget", "privacy")
def outbox_send_command(settings: Settings, due: bool, yes: bool, as_json: bool) -> int:
    """Send the questions that wait, each at most once, if the privacy settings still allow it."""
    policy, ended = load_policy(settings), list[Queued]()

    def consent(item: Queued) -> bool:
        if yes or as_json:
            return yes
        for message in item.messages:
            click.echo(f"{message.role}: {message.content}")
        return click.confirm("Send this?")

    with existing_store(settings) as store:
        caller = load_caller(settings, store)
        if caller is None:
            raise ConfigError("no remote is set", hint="give --remote URL and --remote-model NAME")

        def send(item: Queued) -> RemoteReply:
            if item.payload is None:
                raise EdgeError("the question has no words any more")
            call = caller.stream(
                item.payload.messages,
                max_tokens=item.payload.max_tokens,
                characters=item.payload.characters,
                entities=item.payload.entities,
                idempotency_key=item.idempotency_key,
            )
            for _ in call:
                pass
            return call.reply

        for item in Outbox(store.database).flush(send, refusals(policy, caller.remote, consent), at_once=not due):
            ended.append(item)
            if not as_json:
                _show(item)
    answered = sum(item.state == "answered" for item in ended)
    if as_json:
        print_json({"answered": answered, "questions": ended})
    else:
        console().print(f"{answered} of {len(ended)} answered")
    return 0 if answered == len(ended) else 1


@click.command()
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them, those that wait too.")
@options("store")
def outbox_drop_command(settings: Settings, ids: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Delete questions by their ids, or, without any, those that are over: answered, failed, expired."""
    if ids and everything:
        raise click.UsageError("give ids or --all")
    with _outbox(settings) as outbox:
        dropped = outbox.drop(ids or None) if ids or everything else outbox.purge()
    if as_json:
        print_json({"dropped": dropped})
    else:
        console().print(f"{dropped} dropped")
    if dropped < len(ids):
        raise EdgeError(f"{len(ids) - dropped} of the ids are not in the outbox", hint="see `edge outbox list`")


@contextmanager
def _outbox(settings: Settings) -> Iterator[Outbox]:
    with existing_store(settings) as store:
        yield Outbox(store.database)


def _show(item: Queued) -> None:
    out = console()
    question = item.messages[-1].content if item.messages else "(dropped)"
    out.print(f"{item.id}  {item.state}  {' '.join(question.split())[:200]}")
    until = f"waits until {_when(item.expires_at)}" if item.state == "queued" else ""
    detail = "; ".join(part for part in (" ".join(item.result.split())[:300], until) if part)
    if detail:
        out.print(f"    {detail}")


def _amounts(total: Spent) -> dict[str, object]:
    return {"money": money(total.micro), "micro": total.micro, "tokens": total.tokens, "calls": total.calls}


def _call(entry: ledger.Entry) -> dict[str, Any]:
    return {field: getattr(entry, field) for field in entry.__slots__} | {"money": money(entry.micro)}


def _when(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
