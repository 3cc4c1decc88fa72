"""The page at `/`: a few files of HTML, CSS and JavaScript by hand, nothing built and nothing from elsewhere.

Files are read once, when this module is imported, and served under a folder named for all their contents
(`page/{version}/...`, where they write `page/@/...`), so that a browser may keep them for good and never mixes two versions.
Only `/` itself is asked for again. The page holds no secrets: whatever it shows comes from the API, with the visitor's key.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

import xxhash
from fastapi import APIRouter, Request
from starlette.responses import Response

from server.problems import NOT_FOUND, Trouble

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parent.parent / "page"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Scripts, styles and connections from here only; no inline code, no frames, no forms sent, no markup made of text.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "vary": "accept-encoding",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_FOREVER, _ASK_AGAIN = "public, max-age=31536000, immutable", "no-cache"


class _File(NamedTuple):
    body: bytes
    packed: bytes  # gzip
    etag: str
    media_type: str


def _load() -> tuple[str, dict[str, _File]]:
    """The version of all files together, and each by its name."""
    read = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in _TYPES}
    version = xxhash.xxh3_64_hexdigest(b"".join(name.encode() + body for name, body in read.items()))
    read["index.html"] = read["index.html"].replace(b"page/@/", f"page/{version}/".encode())
    return version, {
        name: _File(body, gzip.compress(body, mtime=0), f'"{xxhash.xxh3_64_hexdigest(body)}"', _TYPES[Path(name).suffix])
        for name, body in read.items()
    }


_VERSION, _FILES = _load()


def _respond(request: Request, file: _File, caching: str) -> Response:
    headers = _HEADERS | {"cache-control": caching, "etag": file.etag}
    known = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
    if file.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    body = file.body
    if "gzip" in request.headers.get("accept-encoding", ""):
        body, headers["content-encoding"] = file.packed, "gzip"
    return Response(body, headers=headers, media_type=file.media_type)


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """The page."""
    return _respond(request, _FILES["index.html"], _ASK_AGAIN)


@router.api_route("/page/{version}/{name}", methods=["GET", "HEAD"])
async def part(request: Request, version: str, name: str) -> Response:
    """One of its files. Another version than ours is asked for while nodes are updated one by one: ours, not to be kept."""
    file = _FILES.get(name)
    if file is None or name == "index.html":
        raise Trouble(NOT_FOUND, f"The page has no file {name!r}")
    return _respond(request, file, _FOREVER if version == _VERSION else _ASK_AGAIN)
