"""What a server can be told, by environment variables `SHAREDRAG_...`; `sharedrag serve` sets them for its workers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, HttpUrl, SecretStr, TypeAdapter, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sharedrag.pool import parse_size

MIB = 1 << 20
_PREFIX = "SHAREDRAG_"
_HTTP_URL: TypeAdapter[HttpUrl] = TypeAdapter(HttpUrl)


def _size(value: str) -> str:
    parse_size(value)
    return value


def _base_url(value: str) -> str:
    try:
        if value:
            _HTTP_URL.validate_python(value)
    except ValidationError:
        raise ValueError("want a URL, such as http://llm:8000/v1") from None
    return value


def _origins(value: object) -> object:
    """A list of origins, also from one text: JSON, or with commas between them."""
    if isinstance(value, str):
        value = json.loads(value) if value.startswith("[") else [one.strip() for one in value.split(",") if one.strip()]
    if not isinstance(value, list) or not all(one == "*" or re.fullmatch(r"https?://[^/\s]+", str(one)) for one in value):
        raise ValueError("want origins such as https://chat.example.org, with commas between them, or *")
    return value


def told(error: ValueError) -> str:
    """In one line what is wrong with settings: of pydantic's errors the variables, and never what a variable holds."""
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(f"{_PREFIX}{'_'.join(map(str, one['loc'])).upper()}: {one['msg']}" for one in error.errors())


class Settings(BaseSettings):
    """Each field is the variable of its name in capitals behind `SHAREDRAG_`: `SHAREDRAG_POOL`, `SHAREDRAG_RATE`, ..."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore")

    pool: Path = Field(default=Path("/dev/shm/sharedrag.pool"), description="Path of the pool; made if it is not there.")
    capacity: Annotated[str, AfterValidator(_size)] = Field(
        default="2 GiB", description="Its capacity where it is made here."
    )
    node: Annotated[int, Field(ge=0)] = Field(default=0, description="The lock domain to attach as.")
    nodes: Annotated[int, Field(ge=1)] = Field(default=1, description="Lock domains of a pool that is made here.")
    label: str = Field(default="", description="What this node calls itself in `sharedrag info` and beside messages.")
    history: Annotated[str, Field(min_length=1)] = Field(default="history", description="The history's name in the pool.")
    embedder: str = Field(default="light", description="As `sharedrag.embed.load_embedder` takes it.")
    maintenance: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1, description="The share of one core for the pool's care, in one worker at a time."
    )

    admin_key: Annotated[SecretStr, Field(min_length=12)] | None = Field(
        default=None,
        description="The admin key, which replaces the one of an earlier start; unset, the first start makes one.",
    )

    threads: Annotated[int, Field(ge=1)] = Field(default=4, description="Threads of a worker that ask the pool and embed.")
    queue: Annotated[int, Field(ge=1)] = Field(default=256, description="Calls that may wait for them; more get a 503.")
    body_max: Annotated[int, Field(ge=1)] = Field(default=4 * MIB, description="Bytes of a request's body; more get a 413.")
    rate: Annotated[float, Field(ge=0)] = Field(
        default=200.0, description="Requests a second of one user, in each worker; more get a 429. 0: no limit."
    )
    burst: Annotated[int, Field(ge=1, le=1_000_000_000)] = Field(
        default=400, description="How many may come at once before the rate counts."
    )
    streams: Annotated[int, Field(ge=0)] = Field(default=256, description="Event streams of one worker; more get a 503.")
    stream_queue: Annotated[int, Field(ge=1)] = Field(
        default=2_000, description="Events that may wait for a slow reader; with more it is sent away."
    )
    stream_patience_s: Annotated[float, Field(gt=0)] = Field(
        default=30.0, description="How long a reader may take nothing at all before its connection is closed."
    )
    keepalive_s: Annotated[float, Field(gt=0)] = Field(default=15.0, description="A silent event stream says so this often.")
    shutdown_s: Annotated[int, Field(ge=0)] = Field(
        default=30, description="How long answers in flight may take at the end."
    )
    tidy_s: Annotated[float, Field(ge=0)] = Field(
        default=600.0, description="How often some worker erases what groups keep no longer. 0: never."
    )
    cors_origins: Annotated[list[str], NoDecode, BeforeValidator(_origins)] = Field(
        default=[], description="Origins whose pages may call, with commas between them; none by default."
    )
    metrics_public: bool = Field(default=True, description="False: /metrics wants the admin key. It never names anybody.")
    metrics_folder: Annotated[Path | None, BeforeValidator(lambda value: value or None)] = Field(
        default=None, description="Where workers share their counts; `serve` makes one."
    )

    upstream_url: Annotated[str, AfterValidator(_base_url)] | None = Field(
        default=None, description="Base URL of an OpenAI-compatible API, such as http://llm:8000/v1."
    )
    upstream_key: SecretStr | None = Field(default=None, description="The key for it.")
    upstream_model: str | None = Field(default=None, description="The model behind `sharedrag`; by default its first.")
    upstream_timeout_s: Annotated[float, Field(gt=0)] = Field(default=120.0, description="How long it may be silent.")
