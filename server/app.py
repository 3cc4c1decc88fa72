"""The application: settings in, FastAPI out. `sharedrag serve` starts it in several processes (`server.serve`)."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import faiss
from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from server import openapi, problems
from server.auth import caller
from server.feed import Feed
from server.limits import BodyLimit, Rates
from server.mcp import PATH as MCP_PATH
from server.mcp import McpDoor
from server.metrics import Measured, Metrics
from server.process import end_with_parent, tell_when_stopped
from server.routes import ROUTERS
from server.settings import Settings
from server.turns import EmbedderAside, Turn
from server.upstream import Upstream
from server.watching import Watching
from server.work import Work
from sharedrag import Pool
from sharedrag.embed import load_embedder, threads_default
from sharedrag.history import History

_log = logging.getLogger("sharedrag.server")


def open_history(settings: Settings, maintenance: bool | float, turn: Turn | None = None) -> History:
    """The history that these settings name, over a pool that is made if it is not there (blocking)."""
    pool = Pool.open(
        settings.pool,
        create=True,
        capacity=settings.capacity,
        node=settings.node,
        nodes=settings.nodes,
        name=node_name(settings),
        maintenance=maintenance,
    )
    embedder = load_embedder(settings.embedder)
    if turn is not None:
        embedder = EmbedderAside(embedder, turn)
    return History(pool, name=settings.history, embedder=embedder, node=node_name(settings))


def node_name(settings: Settings) -> str:
    """What this node calls itself."""
    return settings.label or socket.gethostname()


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Its state has `settings`, `node`, `metrics`, and while it runs what `_start` puts there."""
    settings = settings or Settings()
    logging.basicConfig(format="%(levelname)s:     %(message)s")  # before the MCP SDK installs a handler of its own

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await _start(app.state)
        try:
            async with mcp.running():
                yield
        finally:
            await _stop(app.state)

    app = FastAPIOffline(title="sharedrag", version="1", lifespan=lifespan)  # /docs wants nothing from elsewhere
    app.state.settings = settings
    app.state.node = node_name(settings)
    app.state.metrics = Metrics(settings.metrics_folder)
    mcp = McpDoor(app.state)
    problems.install(app)
    app.add_exception_handler(HTTPException, _on_http)
    for router in ROUTERS:
        app.include_router(router)
    app.router.routes.append(Route(MCP_PATH, endpoint=mcp))
    openapi.install(app)
    app.add_middleware(BodyLimit, body_max=settings.body_max)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Measured, metrics=app.state.metrics)
    return app


async def _start(state: State) -> None:
    """Open what requests need: `history`, `work`, `rates`, `feed`, and `stopping`, set when this process is told to end."""
    settings: Settings = state.settings
    faiss.omp_set_num_threads(threads_default())
    state.stopping = asyncio.Event()
    state.streams = 0
    state.rates = Rates(settings.rate, settings.burst)
    state.work = Work(settings.threads, settings.queue)
    state.history = await state.work.run(open_history, settings, settings.maintenance, state.work.turn)
    state.upstream = Upstream.of(settings)
    state.feed = Feed(state.history, asyncio.get_running_loop())
    state.watching = Watching(state.history, state.work, state.stopping)
    state.tidying = asyncio.create_task(_tidy(state)) if settings.tidy_s else None
    tell_when_stopped(state.stopping)
    end_with_parent()


async def _tidy(state: State) -> None:
    """Now and then; of several processes one does it, and whoever is told to stop does not begin."""
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(state.stopping.wait(), state.settings.tidy_s * random.uniform(0.5, 1.5))
            return
        try:
            await state.work.run(state.history.tidy)
        except Exception as error:  # noqa: BLE001 (whatever it is, the next round may be spared it)
            _log.warning("tidying: %s", error)


async def _stop(state: State) -> None:
    """Every answer has been given: end the threads, let go of the pool."""
    state.stopping.set()
    if state.tidying is not None:
        await state.tidying
    await asyncio.to_thread(state.feed.close)
    if state.upstream is not None:
        await state.upstream.aclose()
    await asyncio.to_thread(state.work.close)
    await asyncio.to_thread(state.history.pool.close)


async def _on_http(request: Request, error: Exception) -> Response:
    """What no route answers is denied like all else: without a valid key it is not even told that nothing is there."""
    assert isinstance(error, HTTPException)
    if error.status_code in (404, 405) and request.url.path not in openapi.OPEN_PATHS:
        try:
            await caller(request)
        except Exception as denied:  # noqa: BLE001 (shown as what it is)
            trouble = problems.of(denied)
            if trouble.kind.status in (401, 429):
                return problems.answer(request.url.path, trouble)
    return problems.of_http(request.url.path, error)
