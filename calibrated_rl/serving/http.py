"""Bodies and errors of HTTP, in OpenAI's form.

Apart from the ingress, because Serve copies its class with what the module has by then.
"""

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from calibrated_rl.serving.answers import ReplicaUnavailable
from calibrated_rl.serving.requests import BadRequest

MOST_BODY_BYTES = 16 * 2**20


async def read_json(request: Request) -> Any:
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > MOST_BODY_BYTES:
            raise BadRequest(f"the body is larger than {MOST_BODY_BYTES} bytes", code="too_large", status=413)
    try:
        return json.loads(body)
    except ValueError as error:
        raise BadRequest("the body is not JSON", code="invalid_json") from error


def error_response(status: int, message: str, parameter: str | None = None, code: str | None = None) -> JSONResponse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {"Retry-After": "1"} if status == 503 else None
    content = {"error": {"message": message, "type": kind, "param": parameter, "code": code}}
    return JSONResponse(content, status, headers=headers)


def handle_errors(app: FastAPI) -> None:
    """Answer with OpenAI's errors where handlers of ``app`` raise."""

    @app.exception_handler(BadRequest)
    async def bad_request(_: Request, error: BadRequest) -> JSONResponse:
        return error_response(error.status, str(error), error.parameter, error.code)

    @app.exception_handler(ReplicaUnavailable)
    async def unavailable(_: Request, error: ReplicaUnavailable) -> JSONResponse:
        return error_response(503, str(error), code="replica_unavailable")

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return error_response(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def server_error(_: Request, error: Exception) -> JSONResponse:
        return error_response(500, f"{type(error).__name__}; the server's log has the details")
