"""One module for each resource; each has a `router`."""

from __future__ import annotations

from server.routes import (
    ask,
    chat,
    conversations,
    events,
    groups,
    health,
    items,
    keys,
    marks,
    me,
    models,
    page,
    pool,
    recent,
    users,
)

#: In this order; another resource is one more line here.
ROUTERS = (
    ask.router,  # first: what is asked most is found first
    health.router,
    groups.router,
    keys.router,
    users.router,
    conversations.router,
    items.router,
    marks.router,
    events.router,
    chat.router,
    models.router,
    me.router,
    recent.router,
    pool.router,
    page.router,
)
