"""Makes the HTTP application that serves a detector; it stands alone, or is mounted in another FastAPI application."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any, Optional, TypeVar

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import ClientDisconnect

from runtime.console.terminal import printable
from runtime.detector import Detector, default_score_threshold
from runtime.errors import InputError
from runtime.results.records import to_record
from runtime.serving import page, schema
from runtime.serving.limits import Limits, RefusedRequestError, Uploads
from runtime.serving.metrics import CONTENT_TYPE, Metrics
from runtime.serving.middleware import Guard
from runtime.serving.model_file import ModelFile
from runtime.serving.service import Service

_GONE = 499  # nobody sees it but the metrics
_SHORTEST_TOKEN = 16
_BODY = {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_FORM = "send the image itself as the body, not a form: curl --data-binary @street.jpg"

T = TypeVar("T")


def create_app(
    detector: Detector,
    *,
    threshold: Optional[float] = None,
    batch: Optional[int] = None,
    limits: Optional[Limits] = None,
    token: Optional[str] = None,
    model_file: Optional[ModelFile] = None,
    hosts: Optional[Collection[str]] = None,
) -> FastAPI:
    """Creates an application that answers `POST /detect` with the detections in an image; docs/serving.md has its paths.

    Its lifespan starts the worker and ends it once all requests are answered; FastAPI does not run that of a mounted
    application, see docs/serving.md. The detector is left open.

    Args:
        detector: its score threshold is the lowest that a request may name.
        threshold: score threshold of requests that name none, in [0, 1]; by default the operating threshold in the model's
            spec, or 0.25 where it has none, but at least the detector's.
        batch: largest number of images run together; by default the model's fixed batch size, or 8.
        limits: of bytes, pixels, images at a time and seconds.
        token: requests must bring it as `Authorization: Bearer TOKEN`, those of the page, `/health` and `/ready` apart.
        model_file: the file that the detector runs, to be told of in `/model`.
        hosts: names that the header Host may have; any by default.

    Raises:
        InputError: a threshold outside of its range, a batch below 1, or a token that is too short.
    """
    server = _Server(detector, threshold, batch, limits or Limits(), model_file)
    check_token(token)
    app = FastAPI(
        title="Detector",
        description=f"Detects objects in images with the model {server.detector.spec.name}.",
        version="1",
        docs_url=None,  # those pages load scripts from elsewhere
        redoc_url=None,
        lifespan=server.lifespan,
        exception_handlers={RefusedRequestError: _refused, RequestValidationError: _invalid},
    )
    app.include_router(_open_routes(server))
    app.include_router(_guarded_routes(server), dependencies=[Depends(_token_check(token))] if token is not None else [])
    app.add_middleware(Guard, metrics=server.metrics, hosts=hosts)
    return app


def check_token(token: Optional[str]) -> None:
    """Raises InputError for a token that is too short, or that no header can hold."""
    if token is not None and not re.fullmatch(f"[!-~]{{{_SHORTEST_TOKEN},}}", token):
        raise InputError(
            f"token: expected at least {_SHORTEST_TOKEN} ASCII characters without spaces; python -c 'import secrets;"
            " print(secrets.token_urlsafe())' makes one"
        )


def _token_check(token: str) -> Callable[..., Awaitable[None]]:
    """Returns the dependency of the routes that need the token; a function, whose annotations FastAPI 0.115 resolves."""
    bearer = Depends(HTTPBearer(auto_error=False, description="the token that the server was started with"))

    async def check(given: Optional[HTTPAuthorizationCredentials] = bearer) -> None:
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(401, "a token is needed: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    return check


class _Server:
    """What the routes of one application share."""

    def __init__(
        self,
        detector: Detector,
        threshold: Optional[float],
        batch: Optional[int],
        limits: Limits,
        model_file: Optional[ModelFile],
    ) -> None:
        self.detector, self.limits, self.model_file = detector, limits, model_file
        self.lowest = detector.score_threshold
        if threshold is not None and not self.lowest <= threshold <= 1:
            raise InputError(f"threshold: expected a number from {self.lowest:g}, the detector's, to 1, got {threshold}")
        self.threshold = max(default_score_threshold(detector.spec), self.lowest) if threshold is None else threshold
        self.metrics = Metrics()
        self.uploads = Uploads(limits)
        self.service = Service(detector, limits, batch, self.metrics)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        async with self.service:
            yield

    async def file_state(self) -> Optional[str]:
        """Returns the state of the model file; the file may be large, and is read in a thread."""
        if self.model_file is None:
            return None
        return await asyncio.get_running_loop().run_in_executor(None, self.model_file.state)

    async def detect(self, request: Request, name: str, threshold: float) -> dict[str, Any]:
        """Reads the image of a request and detects in it."""
        if request.headers.get("content-type", "").lower().startswith("multipart/"):
            raise RefusedRequestError(415, _FORM)
        data = await self.uploads.read(request.stream(), request.headers.get("content-length"))
        answer = await _while_connected(request, self.service.answer(data), self.limits.answer_seconds)
        found = answer.found[answer.found.scores >= threshold]
        self.metrics.see_detections(len(found))
        return {
            **to_record(name, answer.image, found, self.detector.spec.class_names),
            "threshold": threshold,
            "milliseconds": {stage: round(value, 3) for stage, value in answer.milliseconds.items()},
            "batch": answer.batch,
        }

    async def describe(self) -> dict[str, Any]:
        """Returns what `/model` says."""
        spec, file = self.detector.spec, self.model_file
        return {
            "name": spec.name,
            "file": file.name if file else None,
            "sha256": file.sha256 if file else None,
            "file_state": await self.file_state(),
            "class_names": list(spec.class_names),
            "threshold": self.threshold,
            "lowest_threshold": self.lowest,
            "batch": self.service.batch,
            "most_bytes": self.limits.most_bytes,
            "most_pixels": self.limits.most_pixels,
            "spec": {key: json.loads(value) for key, value in spec.to_metadata().items()},
            "curve": file.curve if file else None,
        }


async def _while_connected(request: Request, work: Awaitable[T], seconds: float) -> T:
    """Awaits work for a request, and cancels it when the client goes away or the time is up.

    Raises:
        ClientDisconnect: the client is gone.
        RefusedRequestError: no answer in time (504).
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if leaving.done():
            raise ClientDisconnect
        raise RefusedRequestError(504, f"no answer within {seconds:g} s; try again later", retry_after=1)
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refusals(*statuses: int) -> dict[Any, dict[str, Any]]:
    return {status: {"model": schema.Problem} for status in statuses}


def _open_routes(server: _Server) -> APIRouter:
    """Returns the routes that need no token."""
    router = APIRouter()

    @router.get("/health", response_model=schema.State, response_model_exclude_none=True)
    async def health() -> Any:
        """Says that the process answers; whatever else is wrong, restarting it would not help."""
        return {"status": "alive"}

    @router.get(
        "/ready", response_model=schema.State, response_model_exclude_none=True, responses={503: {"model": schema.State}}
    )
    async def ready() -> Any:
        """Says whether images can be answered now, and whether the model file is still the one that was opened."""
        state, problem = await server.file_state(), server.service.problem
        content = {"status": problem or "ready", **({"file_state": state} if state else {})}
        return JSONResponse(content, 503 if problem else 200)

    @router.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return Response(page.HTML, media_type="text/html", headers=page.HEADERS)

    return router


def _guarded_routes(server: _Server) -> APIRouter:
    """Returns the routes that need the token, if there is one."""
    router = APIRouter(responses=_refusals(401))

    @router.post(
        "/detect",
        response_model=schema.FoundInImage,
        responses=_refusals(408, 413, 415, 422, 500, 503, 504),
        openapi_extra={"requestBody": _BODY},
    )
    async def detect(
        request: Request,
        threshold: Optional[float] = Query(None, ge=server.lowest, le=1, description="lowest score of a detection"),
        name: str = Query("image", max_length=300, description="name of the image, for the answer"),
    ) -> Any:
        """Detects objects in the image file that is the body of the request."""
        try:
            found = await server.detect(request, name, server.threshold if threshold is None else threshold)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        return JSONResponse(found)

    @router.get("/model", response_model=schema.Served)
    async def model() -> Any:
        """Says which model is served, and within which limits."""
        return JSONResponse(await server.describe())

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Returns metrics in Prometheus' format."""
        return Response(server.metrics.text(), media_type=CONTENT_TYPE)

    return router


async def _refused(request: Request, error: Any) -> Response:
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
    return JSONResponse({"detail": printable(error)}, error.status, headers)


async def _invalid(request: Request, error: Any) -> Response:
    lines = (f"{'.'.join(str(part) for part in item['loc'][1:])}: {item['msg']}" for item in error.errors())
    return JSONResponse({"detail": printable("; ".join(lines))}, 422)
