"""What the engine raises, and errors as an OpenAI client reads them: a status, a sentence, the field it is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class EngineError(Exception):
    """The engine cannot do what was asked; the message says why."""


class PromptError(EngineError):
    """The prompt or a sampling parameter cannot be served as it stands."""


class AdapterError(Exception):
    """An adapter cannot be loaded or used; the message says which and why."""


@dataclass
class ApiError(Exception):
    """An answer other than 200. `param` is the request's field, `code` a short word for programs."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def bad_request(message: str, param: str | None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param, code)


def not_found(message: str, param: str, code: str) -> ApiError:
    return ApiError(404, message, param, code)


def too_large(limit_bytes: int) -> ApiError:
    return ApiError(413, f"the request has more than {limit_bytes} bytes: send less", None, "request_too_large")
