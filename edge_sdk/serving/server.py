"""The web server, which ends what it serves before it ends itself."""

from __future__ import annotations

import socket
from collections.abc import Callable

from ..errors import MissingExtraError

try:
    import uvicorn
except ImportError as missing:
    raise MissingExtraError("the server", "serve") from missing


class Server(uvicorn.Server):
    """Tells the application by `end` that it ends; else it would wait for the answers, and then break them off."""

    def __init__(self, config: uvicorn.Config, end: Callable[[], None]) -> None:
        super().__init__(config)
        self._end = end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Clients have their errors before connections are closed."""
        self._end()
        await super().shutdown(sockets)
