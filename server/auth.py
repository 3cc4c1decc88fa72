"""Who calls: a key, and what it may act as. Everything that touches the history goes through `Call` or `caller`.

A key is looked up for every request, so that revoking it on one node counts on all in the next. Keys travel in the
`Authorization` header only: what is in a URL ends in somebody's log.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Concatenate, NamedTuple, ParamSpec, TypeVar

from fastapi import Depends, Request

from server.limits import Rates
from server.problems import BAD_REQUEST, NOT_ALLOWED, UNAUTHORIZED, Trouble
from server.work import Work
from sharedrag.history import History
from sharedrag.history.errors import NotFound

P = ParamSpec("P")
T = TypeVar("T")

GROUP_HEADER = "X-Sharedrag-Group"
USER_HEADER = "X-Sharedrag-User"
#: How a trusted front end names its users; the first that is there counts.
PROXY_USER_HEADERS = ("x-openwebui-user-email", "x-openwebui-user-id")  # not the name: users change that themselves


class Credentials(NamedTuple):
    """What a request says of itself; nothing of it is believed yet."""

    key: str
    group: str | None
    user: str | None
    proxied_user: str | None
    host: str


class Principal(NamedTuple):
    """Whom a request acts as, and where. Every call of the history checks that the user is a member of the group."""

    user: str | None
    group: str | None
    admin: bool
    trusted: bool

    @property
    def place(self) -> tuple[str, str]:
        """(group, user). Raises a problem that says what is missing."""
        return self.in_group, self.as_user

    @property
    def in_group(self) -> str:
        """The group. Raises a problem if none is named."""
        if self.group is None:
            raise Trouble(BAD_REQUEST, f"Which group? Name it in the header {GROUP_HEADER}, or use a key of one group")
        return self.group

    @property
    def as_user(self) -> str:
        """The user. Raises a problem if none is named."""
        if self.user is None:
            raise Trouble(BAD_REQUEST, f"As whom? Name the user in the header {USER_HEADER}, or use a member's key")
        return self.user

    def must_be_admin(self) -> None:
        """Raise a problem unless the admin key was used."""
        if not self.admin:
            raise Trouble(NOT_ALLOWED, "Only the admin key may do that")


def credentials(request: Request) -> Credentials:
    """What the headers say. Raises a 401 if there is no bearer key at all."""
    headers = request.headers
    scheme, _, key = headers.get("authorization", "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise Trouble(UNAUTHORIZED, "Send the header Authorization: Bearer KEY")
    proxied = next((headers[name] for name in PROXY_USER_HEADERS if headers.get(name)), None)
    return Credentials(
        key=key,
        group=headers.get(GROUP_HEADER) or request.query_params.get("group") or None,
        user=_text(headers.get(USER_HEADER)),
        proxied_user=_text(proxied),
        host=request.client.host if request.client else "",
    )


def _text(header: str | None) -> str | None:
    """A header's text: the bytes are read as Latin-1 on their way here, and clients that can send more send UTF-8."""
    with suppress(UnicodeError):
        header = header and header.encode("latin-1").decode()
    return header or None


def authenticate(history: History, rates: Rates, given: Credentials) -> Principal:
    """The principal of these credentials (blocking). Raises 401, 403, 404 and 429 problems."""
    info = history.keys.resolve(given.key)
    if info is None:
        rates.count_failure(given.host)
        raise Trouble(UNAUTHORIZED, "This key is not known, or was revoked")
    admin = info.user is None and info.group is None and not info.trusted
    speaks_for_others = admin or info.trusted
    user = info.user
    if speaks_for_others and user is None:
        user = given.user or (given.proxied_user if info.trusted else None)
    elif given.user not in (None, info.user):
        raise Trouble(NOT_ALLOWED, f"This key acts as its own user only; {USER_HEADER} is for the admin and trusted keys")
    rates.count(given.key if user is None else f"{info.group or ''}/{user}")  # others' groups may have the same names
    if info.group is not None and given.group not in (None, info.group):
        raise NotFound(f"no group {given.group!r}", operation="authenticate", hint="This key is for another group")
    group = info.group or given.group
    if speaks_for_others and user is not None and group is not None:
        _join(history, group, user)
    return Principal(user, group, admin, info.trusted)


def _join(history: History, group: str, user: str) -> None:
    """Users whom an admin or a trusted front end names become members when they first come."""
    try:
        history.groups.member(group, user)
    except NotFound:
        history.groups.add_member(group, user)


class Call:
    """A request that may ask the history: `await call(job, ...)` runs `job(history, principal, ...)` off the event loop.

    The key is resolved in the same step, so a route that asks the history cannot forget it.
    """

    __slots__ = ("_given", "_history", "_rates", "_work")

    def __init__(self, request: Request) -> None:
        """Raises a 401 problem if there is no key."""
        state = request.app.state
        self._given = credentials(request)
        self._history: History = state.history
        self._work: Work = state.work
        self._rates: Rates = state.rates

    async def __call__(self, job: Callable[Concatenate[History, Principal, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `job(history, principal, *args, **kwargs)` returns or raises; before it the problems of `authenticate`."""

        def run() -> T:
            return job(self._history, authenticate(self._history, self._rates, self._given), *args, **kwargs)

        return await self._work.run(run)


async def call_of(request: Request) -> Call:
    """The dependency behind `Calling`."""
    return Call(request)


async def caller(request: Request) -> Principal:
    """Dependency: the principal of a request, for routes that need it before they ask the history."""
    return await Call(request)(lambda _, who: who)


#: The type of a route's parameter that asks the history.
Calling = Annotated[Call, Depends(call_of)]
#: The type of a route's parameter that is who calls.
Caller = Annotated[Principal, Depends(caller)]
