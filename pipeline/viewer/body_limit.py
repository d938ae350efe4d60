"""Requests that send more than the page ever does are refused.

The page sends settings and a text. Gradio also takes files, of any size and from anybody, and
keeps them on the server's disk: nothing here asks for one.
"""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.viewer.patched_text import MOST_BYTES

MOST_BODY = 20 * MOST_BYTES
"""Bytes: JSON writes a control character in six, and there is room for the other settings."""


class BodyLimit:
    """Middleware that answers requests with files, or of more than MOST_BODY bytes, with an
    error."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, size = Headers(scope=scope), 0
        if headers.get("content-type", "").strip().lower().startswith("multipart/"):
            answer = PlainTextResponse("The viewer takes no files.", status_code=403)
            await answer(scope, receive, send)
            return

        async def counted() -> Message:
            # The length that headers state may be missing, or wrong.
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MOST_BODY:
                raise HTTPException(413, f"The viewer takes {MOST_BODY:,} bytes at most.")
            return message

        await self._app(scope, counted, send)
