"""A flag that native code can poll through a callback `bool (*)(void *)`.

In C where the kernels were built. Otherwise the callback is a Python function, which waits for the interpreter lock
each time it is asked: the same answer, slower where other threads are busy. Knows nothing of what is stopped.
"""

from __future__ import annotations

import ctypes
from typing import Any

from kernels.library import load

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)


class Flag:
    """Starts cleared. Keep it alive for as long as native code may call `callback` with `address`.

    >>> flag = Flag()
    >>> flag.is_set(), flag.set(), flag.is_set()
    (False, None, True)
    """

    def __init__(self) -> None:
        self._byte = ctypes.c_ubyte(0)
        self.address = ctypes.addressof(self._byte)
        native = load("edge_flag_is_set")
        self.callback: Any = ctypes.cast(native, _CALLBACK) if native else _CALLBACK(self._ask)

    def set(self, value: bool = True) -> None:
        """Raise or clear the flag; any thread."""
        self._byte.value = int(value)

    def is_set(self) -> bool:
        """What native code would be told now."""
        return bool(self.callback(self.address))

    def _ask(self, _address: int) -> bool:
        return self._byte.value != 0
