"""One module for each resource; each has a `router`."""

from __future__ import annotations

from server.routes import groups, health

#: In this order; another resource is one more line here.
ROUTERS = (health.router, groups.router)
