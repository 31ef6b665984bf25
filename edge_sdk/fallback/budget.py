"""What remote calls may cost: prices, and limits per request, day, month and in all, in money, tokens, calls.

Pure. Money is a whole number of millionths of the user's currency, whichever that is, so nothing is rounded away.
Days and months are those of UTC, so that travelling does not give a day twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Literal

from ..errors import BudgetError, ConfigError

Period = Literal["request", "day", "month", "total"]
PERIODS: tuple[Period, ...] = ("request", "day", "month", "total")
MICRO = 1_000_000
_MOST = 10**15  # of anything: sums of such numbers still fit SQLite's integers


@dataclass(frozen=True, slots=True)
class Prices:
    """What a million tokens cost, in millionths of the currency.

    >>> Prices.parse("0.15/0.60").cost(1000, 200)
    270
    """

    prompt: int
    completion: int

    @classmethod
    def parse(cls, text: str) -> Prices:
        """From "PROMPT/COMPLETION", money for a million tokens; raises `ConfigError`."""
        prompt, slash, completion = text.partition("/")
        if not slash:
            raise ConfigError(
                f"the prices {text!r} are not two", hint='use "0.15/0.60": a million tokens in and out'
            )
        return cls(parse_money(prompt), parse_money(completion))

    def cost(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Millionths of the currency, rounded up."""
        return -(-(self.prompt * prompt_tokens + self.completion * completion_tokens) // MICRO)


@dataclass(frozen=True, slots=True)
class Spent:
    """An amount: money in millionths, tokens in and out together, calls."""

    micro: int = 0
    tokens: int = 0
    calls: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.micro + other.micro, self.tokens + other.tokens, self.calls + other.calls)


@dataclass(frozen=True, slots=True)
class Limit:
    """The most that may be spent in one period; None is no limit."""

    micro: int | None = None
    tokens: int | None = None
    calls: int | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of a request, a day, a month and of all that is in one ledger; they hold for all remotes together.

    >>> Budget.parse("0.01/request 0.50/day 200000tokens/day 100calls/month").day
    Limit(micro=500000, tokens=200000, calls=None)
    """

    request: Limit = Limit()
    day: Limit = Limit()
    month: Limit = Limit()
    total: Limit = Limit()

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From words like "0.50/day" (money), "9000tokens/day" or "20calls/month"; raises `ConfigError`."""
        budget = cls()
        for word in text.replace(",", " ").split():
            found = re.fullmatch(r"([0-9.]+)(tokens|calls)?/(request|day|month|total)", word)
            if not found:
                raise ConfigError(
                    f"the budget has a part {word!r}", hint='use words like "0.50/day 9000tokens/day 20calls/month"'
                )
            amount, unit, period = found.groups()
            most = parse_money(amount) if unit is None else _whole(amount, word)
            limit = replace(getattr(budget, period), **{unit or "micro": most})
            budget = replace(budget, **{period: limit})
        return budget

    @property
    def needs_prices(self) -> bool:
        """Whether a limit is in money."""
        return any(limit.micro is not None for limit in (self.request, self.day, self.month, self.total))

    def check(self, call: Spent, day: Spent, month: Spent, total: Spent = Spent()) -> None:
        """Raise `BudgetError` when a call that may cost as much does not fit beside what was spent already."""
        for period, limit, spent in zip(
            PERIODS, (self.request, self.day, self.month, self.total), (Spent(), day, month, total), strict=True
        ):
            after = spent + call
            for unit in ("micro", "tokens", "calls"):
                most, wanted = getattr(limit, unit), getattr(after, unit)
                if most is not None and wanted > most:
                    left = max(0, most - getattr(spent, unit))
                    raise BudgetError(
                        f"the call may take {amount(unit, getattr(call, unit))} and the {_named(period)} has "
                        f"{amount(unit, left)} left of {amount(unit, most)}, nothing was sent",
                        hint="see `edge spend`, ask for a shorter answer or raise EDGE_BUDGET",
                    )


def _named(period: Period) -> str:
    return "total budget" if period == "total" else f"budget of the {period}"


def starts(now: float) -> tuple[float, float]:
    """When the day and the month of a moment began, all in seconds since 1970.

    >>> starts(86400 * 40 + 7)
    (3456000.0, 2678400.0)
    """
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day.timestamp(), day.replace(day=1).timestamp()


def parse_money(text: str) -> int:
    """Money as people write it, in millionths, rounded up; raises `ConfigError`.

    >>> parse_money("0.05"), parse_money("0.0000001")
    (50000, 1)
    """
    try:
        value = Decimal(text.strip())
        if not (value.is_finite() and 0 <= value <= _MOST // MICRO):
            raise InvalidOperation
    except InvalidOperation:
        raise ConfigError(f"{text.strip()!r} is not an amount of money", hint='use one like "0.50"') from None
    return int((value * MICRO).to_integral_value(ROUND_CEILING))


def money(micro: int) -> str:
    """Millionths as people read them, without needless zeros.

    >>> money(50000), money(1234567), money(0)
    ('0.05', '1.234567', '0.00')
    """
    whole, rest = divmod(micro, MICRO)
    return f"{whole}.{f'{rest:06d}'.rstrip('0'):0<2}"


def amount(unit: str, value: int) -> str:
    """An amount of one of the units of `Spent`, in words."""
    return money(value) if unit == "micro" else f"{value} {unit if value != 1 else unit[:-1]}"


def _whole(text: str, word: str) -> int:
    if not text.isdigit() or len(text) > 15:
        raise ConfigError(f"the budget has a part {word!r}", hint="tokens and calls are whole numbers")
    return int(text)
