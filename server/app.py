"""The application: settings in, FastAPI out. `sharedrag serve` starts it in several processes (`server.serve`)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from server import problems
from server.limits import BodyLimit, Rates
from server.routes import ROUTERS
from server.settings import Settings
from server.work import Work
from sharedrag import Pool
from sharedrag.embed import load_embedder
from sharedrag.history import History


def open_history(settings: Settings, name: str, maintenance: bool | float) -> History:
    """The history that these settings name, over a pool that is made if it is not there (blocking)."""
    pool = Pool.open(
        settings.pool,
        create=True,
        capacity=settings.capacity,
        node=settings.node,
        nodes=settings.nodes,
        name=name,
        maintenance=maintenance,
    )
    return History(pool, name=settings.history, embedder=load_embedder(settings.embedder))


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Its state has `settings`, and while it runs `history`, `work`, `rates` and `stopping`."""
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sys.setswitchinterval(settings.switch_interval_s)
        state = app.state
        state.stopping = asyncio.Event()
        state.rates = Rates(settings.rate, settings.burst)
        state.work = Work(settings.threads, settings.queue)
        state.history = await state.work.run(open_history, settings, settings.label or "server", settings.maintenance)
        try:
            yield
        finally:
            state.stopping.set()
            await asyncio.to_thread(state.work.close)
            await asyncio.to_thread(state.history.pool.close)

    app = FastAPI(title="sharedrag", version="1", lifespan=lifespan)
    app.state.settings = settings
    problems.install(app)
    for router in ROUTERS:
        app.include_router(router)
    app.add_middleware(BodyLimit, body_max=settings.body_max)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"])
    return app
