"""The OpenAPI document: FastAPI's own, with the key that everything wants and the shapes of errors."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.problems import OpenAIError, Problem

DESCRIPTION = """\
A group's shared memory over HTTP: what one member asked and was answered helps the next one who asks. Every worker of every
node serves from the same pool of shared memory, so what one writes all others find in their next call.

**Keys.** Send `Authorization: Bearer KEY` with everything under `/v1`. The admin key makes groups and lets members in; a
member's key acts as that user in that group. The admin key and *trusted* keys (of a front end that has checked its users)
name the user in `X-Sharedrag-User` and, where the key is not one group's, the group in `X-Sharedrag-Group`.

**Errors** are problem details (RFC 9457) on native routes and OpenAI's error objects on OpenAI's (`/v1/conversations`,
`/v1/chat/completions`, `/v1/models`). What is another group's is a 404. A 429 or 503 says in `Retry-After` when to return.
"""
SCHEME = "key"
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})


def install(app: FastAPI) -> None:
    """Make `app.openapi` give the whole document, made once."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
    components = made.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for model in (Problem, OpenAIError):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    components["securitySchemes"] = {
        SCHEME: {"type": "http", "scheme": "bearer", "description": "The admin key, a member's or a trusted key."}
    }
    made["security"] = [{SCHEME: []}]
    for path, operations in made["paths"].items():
        for operation in operations.values():
            if path in OPEN_PATHS:
                operation["security"] = []
            if "HTTPValidationError" in str(operation["responses"].get("422", "")):  # FastAPI's own shape is not ours
                del operation["responses"]["422"]
            for parameter in operation.get("parameters", ()):
                _never_null(parameter)
            _entitle(operation)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return made


def _entitle(operation: dict[str, Any]) -> None:
    """Let the description's first words be the title: functions are called `create` in each of several routers."""
    if not operation["summary"].istitle():
        return  # a route's own words, not its function's name
    said = operation.get("description", "")
    sentence = re.split(r"\.(?:\s|$)", said, maxsplit=1)[0]
    operation["summary"] = re.split(r"[:;,] ", " ".join(sentence.split()), maxsplit=1)[0] or operation["summary"]


def _never_null(parameter: dict[str, Any]) -> None:
    """A header or query parameter that may be left out is never null: it has no way to say so."""
    schema = parameter.get("schema", {})
    variants = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if len(variants) == 1 and len(schema["anyOf"]) == 2:
        del schema["anyOf"]
        schema |= variants[0]
