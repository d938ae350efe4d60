"""The meaning of errors of remote storage: it may pass, credentials have expired, or neither."""

import errno
import re

TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses of servers that are not well."""
CONFLICT = 409
"""S3's status where two requests for one object met: either is to be repeated."""
THROTTLED = re.compile(r".*Throttl.*|(Request|Bandwidth)LimitExceeded|PriorRequestNotComplete")
"""Codes of S3 for too many requests, whatever the status: KMS, which encrypts for it, says 400."""
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired")
"""Codes of S3 for credentials that counted for a time."""
UNSAID = "400"
"""The code that s3fs makes of the same answer where it has no body (HEAD)."""

_TRANSPORT = ("aiohttp", "http", "httpcore", "httpx", "requests", "urllib3")
"""Packages all of whose exceptions are about the transport."""
_BOTOCORE = ("HTTPClientError", "ConnectionError", "IncompleteReadError", "ResponseParserError")
"""Exceptions of botocore, with those below them, that are about the transport."""
_ERRNOS = {
    *(errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.EPIPE),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
}


def is_outage(error: BaseException) -> bool:
    """True if an error of a remote filesystem may pass by itself."""
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError | ValueError):
        return False
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode") in TRANSIENT_STATUSES
    for answer in (error, response):
        status = getattr(answer, "status", None) or getattr(answer, "status_code", None)
        if isinstance(status, int):
            return status in TRANSIENT_STATUSES
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    # s3fs makes an I/O error of each refusal that it has no other for, such as one of a full quota.
    code, status = s3_answer(error)
    if code and isinstance(error, OSError) and error.errno == errno.EIO:
        return status in (*TRANSIENT_STATUSES, CONFLICT) or bool(THROTTLED.fullmatch(code))
    for kind in type(error).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in _TRANSPORT or (package == "botocore" and kind.__name__ in _BOTOCORE):
            return True
    return isinstance(error, OSError) and error.errno in _ERRNOS


def s3_answer(error: BaseException) -> tuple[str, int]:
    """The code and the HTTP status with which S3 answered a request that s3fs made; empty and 0 if
    the error is another."""
    response = getattr(error.__cause__, "response", None)
    if not isinstance(response, dict):
        return "", 0
    code = str(response.get("Error", {}).get("Code", ""))
    return code, int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def has_expired(error: BaseException) -> bool:
    """True if S3 may have refused credentials that counted before."""
    return s3_answer(error)[0] in (*EXPIRED, UNSAID)
