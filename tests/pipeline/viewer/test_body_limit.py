"""The viewer takes settings and a text, and nothing larger."""

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from pipeline.viewer.body_limit import MOST_BODY, BodyLimit


def in_parts(size: int):
    """A body without a stated length."""
    return iter([b"x" * (size - 1), b"x"])


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"json": {"data": ["text"]}}, 200),
        ({"content": b"x" * MOST_BODY}, 200),
        ({"content": b"x" * (MOST_BODY + 1)}, 413),
        ({"content": in_parts(MOST_BODY)}, 200),
        ({"content": in_parts(MOST_BODY + 1)}, 413),
        ({"files": {"files": b"a file"}}, 403),
        ({"content": b"", "headers": {"content-type": " Multipart/Form-Data; boundary=x"}}, 403),
    ],
    ids=["settings", "most", "more", "most in parts", "more in parts", "file", "spelled otherwise"],
)
def test_files_and_large_requests_are_refused(sent, status):
    async def length(request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    app = Starlette(
        routes=[Route("/", length, methods=["POST"])], middleware=[Middleware(BodyLimit)]
    )
    assert TestClient(app).post("/", **sent).status_code == status
