"""Requests that another page makes in a user's browser are refused.

A page on the web can have a name of its own lead to 127.0.0.1 (DNS rebinding), and would then read
the viewer as a part of itself. The browser says by which name it asks: an address, which nobody can
rebind, this machine's name, or ``localhost`` are right, and so is an origin of the same name.
"""

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class HostCheck:
    """Middleware that answers requests under foreign names, or from foreign pages, with 403."""

    def __init__(self, app: ASGIApp, host: str):
        """
        Args:
            host: the address or name that the server listens on.
        """
        self._app = app
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] in ("http", "websocket") and not self._is_own(Headers(scope=scope)):
            text = "This name is not the viewer's: open it as http://localhost, or by its address."
            await PlainTextResponse(text, status_code=403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_own(self, headers: Headers) -> bool:
        host = _name(f"//{headers.get('host', '')}")
        origin = headers.get("origin")
        known = host in self._names or _is_address(host)
        return known and (origin is None or _name(origin) == host)


def _name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
