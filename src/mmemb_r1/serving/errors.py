"""Say errors as OpenAI's API does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """
    Refuse a request.

    Args:
        status: of HTTP.
        message: what came, what is allowed and what to do.
        param: the field of the request that it is about.
        code: a short name for programs.
        headers: of the response, besides.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """Make the body of the response."""
        return {"error": {"message": self.message, "type": _type(self.status), "param": self.param, "code": self.code}}


def _type(status: int) -> str:
    if status in (401, 403):
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
