"""Parts that are opened when they are first asked for, once, however many threads ask; not after the end."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Self, TypeVar, overload

from .errors import EdgeError

_T = TypeVar("_T")


class opened_once(cached_property[_T]):
    """Such a part as a property of what has `opening`, a lock held meanwhile, and says when it is `closed`.

    One that was not opened by then raises `EdgeError`.

    >>> from threading import RLock
    >>> class Shop:
    ...     opening, closed = RLock(), False
    ...     @opened_once
    ...     def door(self):
    ...         print("opens")
    ...         return "a door"
    >>> shop = Shop()
    >>> shop.door, shop.door
    opens
    ('a door', 'a door')
    """

    @overload
    def __get__(self, opener: None, owner: Any = None) -> Self: ...
    @overload
    def __get__(self, opener: object, owner: Any = None) -> _T: ...
    def __get__(self, opener: Any, owner: Any = None) -> Self | _T:
        if opener is None:
            return self
        with opener.opening:
            if opener.closed:
                raise EdgeError(f"this {type(opener).__name__} is closed", hint="open another one")
            found: _T = super().__get__(opener, owner)
            return found
