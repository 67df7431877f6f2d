"""Make the application: routes, and what becomes of errors."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import mmemb_r1
from mmemb_r1.serving.errors import ApiError
from mmemb_r1.serving.executor import Answer
from mmemb_r1.serving.gate import Gate
from mmemb_r1.serving.job_errors import ClosedError, ExecutorError, QueueFullError, RefusedError
from mmemb_r1.serving.metrics import Metrics
from mmemb_r1.serving.protocol import EmbeddingRequest
from mmemb_r1.serving.scheduler import Scheduler
from mmemb_r1.serving.service import EmbeddingService

logger = logging.getLogger("mmemb_r1.serving")

LARGE = 2**16  # bytes of JSON, and numbers of a response, that are not handled between other requests
CLIENT_LEFT = 499  # as nginx logs it; nobody receives it
_ID = re.compile(r"[\w.:-]{1,128}")
_FAILED = ApiError(500, "The server failed over this request; its log says why.", code="internal_error")
T = TypeVar("T")


class ClientLeftError(Exception):
    """Say that nobody waits for the answer any more."""


def build_app(service: EmbeddingService, scheduler: Scheduler, metrics: Metrics, keys: Sequence[str] = ()) -> FastAPI:
    """
    Make the application.

    Args:
        service: reads requests and writes responses.
        scheduler: closed when the application ends.
        metrics: what `/metrics` shows.
        keys: of the API; none: everybody may use it.
    """
    pool = ThreadPoolExecutor(2, thread_name_prefix="json")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(scheduler.close, service.settings.shutdown_seconds)
        pool.shutdown(wait=False)

    app = FastAPI(
        title="mmemb-r1",
        version=mmemb_r1.__version__,
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    routes = _Routes(service, scheduler, metrics, pool)
    schema = EmbeddingRequest.model_json_schema()
    app.post(
        "/v1/embeddings",
        openapi_extra={"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}},
    )(routes.embeddings)
    app.get("/v1/models")(routes.models)
    app.get("/v1/models/{name:path}")(routes.model)
    app.get("/health")(routes.health)
    app.get("/ready")(routes.ready)
    app.get("/metrics")(routes.metrics_page)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Gate, settings=service.settings, keys=keys, metrics=metrics)
    app.state.is_stopping, app.state.scheduler = False, scheduler
    return app


class _Routes:
    """Hold what the routes share."""

    def __init__(
        self, service: EmbeddingService, scheduler: Scheduler, metrics: Metrics, pool: ThreadPoolExecutor
    ) -> None:
        self.service, self.scheduler, self.metrics, self.pool = service, scheduler, metrics, pool

    async def embeddings(self, request: Request) -> Response:
        """Embed inputs."""
        arrived = time.monotonic()
        given = request.headers.get("x-request-id", "")
        facts: dict[str, Any] = {"request_id": given if _ID.fullmatch(given) else uuid.uuid4().hex}
        try:
            body, answers = await self._answer(request, arrived, facts)
            response = Response(body, media_type="application/json")
        except ClientLeftError:
            response = Response(status_code=CLIENT_LEFT)
        except ApiError as error:
            response = _error_response(error)
            facts["code"] = error.code
        except Exception:
            logger.exception("a request failed", extra={"facts": dict(facts)})
            response = _error_response(_FAILED)
        response.headers["x-request-id"] = facts["request_id"]
        self._note(response.status_code, time.monotonic() - arrived, facts)
        return response

    async def _answer(self, request: Request, arrived: float, facts: dict[str, Any]) -> tuple[bytes, list[Answer]]:
        body = await request.body()
        asked, job = await self._done(len(body) > LARGE, self.service.read, body, arrived)
        del body
        facts |= {"inputs": len(job.rows), "mode": job.rows[0].options.reasoning}
        try:
            self.scheduler.submit(job)
            answers = await _unless_disconnected(job.future, request)
        except QueueFullError as error:
            told = f"The server is busy: its queue is full. Try again in {error.retry_after} s."
            raise ApiError(429, told, code="queue_full", headers={"retry-after": str(error.retry_after)}) from error
        except ClosedError as error:
            told = "The server is shutting down. Send the request again, to another one or later."
            raise ApiError(503, told, code="shutting_down", headers={"retry-after": "5"}) from error
        except RefusedError as error:
            told, where = str(error), "messages" if asked.messages is not None else "input"
            raise ApiError(400, told, param=f"{where}[{error.index}]", code="invalid_input") from error
        except ExecutorError as error:
            raise ApiError(500, _FAILED.message, code="executor_error") from error
        facts |= {
            "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
            "reasoning_tokens": sum(answer.reasoning_tokens for answer in answers),
            "reasoned": sum(answer.rounds > 0 for answer in answers),
            "stopped": sum(answer.stopped for answer in answers),
        }
        numbers = len(answers) * (asked.dimensions or self.service.dim)
        return await self._done(numbers > LARGE, self.service.write, asked, answers), answers

    async def _done(self, is_large: bool, function: Callable[..., T], *args: Any) -> T:
        """Call a function: in a thread where it takes long, so that other requests go on."""
        if not is_large:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *args)

    def _note(self, status: int, seconds: float, facts: dict[str, Any]) -> None:
        self.metrics.requests.labels(str(status)).inc()
        if status == 200:
            self.metrics.request_seconds.labels(facts["mode"]).observe(seconds)
        level = logging.INFO if status < 500 else logging.ERROR
        logger.log(level, "embeddings", extra={"facts": {"status": status, "seconds": round(seconds, 4), **facts}})

    async def models(self) -> dict[str, Any]:
        """List the model that is served."""
        return {"object": "list", "data": self.service.models()}

    async def model(self, name: str) -> dict[str, Any]:
        """Show the model that is served."""
        self.service.check_model(name)
        return self.service.models()[0]

    async def health(self) -> Response:
        """Tell whether the server works; if not, it has to be started again."""
        healthy = self.scheduler.is_healthy
        return JSONResponse({"status": "ok" if healthy else "failing"}, 200 if healthy else 503)

    async def ready(self, request: Request) -> Response:
        """Tell whether requests should be sent here."""
        ready = self.scheduler.is_healthy and not request.app.state.is_stopping
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    async def metrics_page(self) -> Response:
        """Show the metrics to Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _unless_disconnected(future: Future[list[Answer]], request: Request) -> list[Answer]:
    """Wait for answers; if the client goes away, or the server gives up waiting, the rows are given up."""
    waiting = asyncio.wrap_future(future)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        either: set[asyncio.Future[Any]] = {waiting, leaving}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientLeftError
        return waiting.result()
    finally:
        waiting.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error_response(error: ApiError) -> Response:
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _api_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return _error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """Say what Starlette refuses, unknown paths and methods, as all other errors."""
    if not isinstance(error, HTTPException):
        raise error
    told = {
        404: "There is nothing at this path. Allowed: POST /v1/embeddings, and GET /v1/models, /health, /ready and "
        "/metrics.",
        405: "This path does not take this method. Allowed: POST for /v1/embeddings, GET for all others.",
    }.get(error.status_code, str(error.detail))
    return _error_response(ApiError(error.status_code, told, headers=dict(error.headers or {})))
