"""What the trial runs: two `sharedrag serve` on one pool, and Open WebUI before them, set up as its administrator would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

START_S = 600.0
PASSWORD = "Hula-2026!"
FILTER = "crowd"
PUBLIC = [{"principal_type": "user", "principal_id": "*", "permission": "read"}]
#: Nothing is fetched, no embedding model is loaded, and each request says for whom it is.
SETTINGS = {
    "ENABLE_FORWARD_USER_INFO_HEADERS": "True",
    "ENABLE_OLLAMA_API": "False",
    "ENABLE_VERSION_UPDATE_CHECK": "False",
    "HF_HUB_OFFLINE": "1",
    "OFFLINE_MODE": "True",
    "RAG_EMBEDDING_ENGINE": "openai",
    "WEBUI_SECRET_KEY": "only-for-a-trial-on-this-machine",
}


class Server:
    """A process that listens at `url`. What it prints goes to a file of its name in `folder`."""

    def __init__(self, name: str, command: list[str], folder: Path, **environment: str) -> None:
        """`command` gets a free port as its last argument."""
        port = _free_port()
        self.name, self.url, self.log = name, f"http://127.0.0.1:{port}", folder / f"{name}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, str(port)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={key: value for key, value in os.environ.items() if not key.startswith("SHAREDRAG_")} | environment,
            )

    def wait_until_ready(self, path: str) -> None:
        """Return when `path` is answered. RuntimeError, with the end of its log, if it has ended or takes too long."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(self.url + path, timeout=5).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text(errors='replace')[-2000:]}")

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop it."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def sharedrag(name: str, folder: Path, pool: Path, admin_key: str, **settings: str) -> Server:
    """A node of the pool. `settings` are SHAREDRAG_ variables by their names in small letters."""
    told = {"admin_key": admin_key, "capacity": "128 MiB", "label": name} | settings
    command = [sys.executable, "-m", "sharedrag", "serve", "--pool", str(pool), "--workers", "1", "--port"]
    return Server(name, command, folder, **{f"SHAREDRAG_{key.upper()}": value for key, value in told.items()})


def open_webui(command: str, folder: Path) -> Server:
    """Open WebUI with a database of its own."""
    data = folder / "data"
    data.mkdir()
    serve = [command, "serve", "--host", "127.0.0.1", "--port"]
    return Server("open-webui", serve, folder, DATA_DIR=str(data), **SETTINGS)


class Administrator:
    """The first user of an Open WebUI, who sets it up over its API."""

    def __init__(self, url: str) -> None:
        """Sign up."""
        self._http = httpx.Client(base_url=url, timeout=120)
        account = {"name": "Admin", "email": "admin@example.org", "password": PASSWORD}
        self._http.headers["Authorization"] = f"Bearer {self._post('/api/v1/auths/signup', account)['token']}"

    def add_user(self, name: str) -> str:
        """Somebody who may chat; returns the e-mail address, which is their name in the group, too."""
        email = f"{name.lower()}@example.org"
        self._post("/api/v1/auths/add", {"name": name, "email": email, "password": PASSWORD, "role": "user"})
        return email

    def connect(self, connections: Mapping[str, tuple[str, str]]) -> None:
        """The OpenAI connections: base URL and key under the prefix of their models' ids."""
        configs = {str(number): {"enable": True, "prefix_id": prefix} for number, prefix in enumerate(connections)}
        self._post(
            "/openai/config/update",
            {
                "ENABLE_OPENAI_API": True,
                "OPENAI_API_BASE_URLS": [url for url, _ in connections.values()],
                "OPENAI_API_KEYS": [key for _, key in connections.values()],
                "OPENAI_API_CONFIGS": configs,
            },
        )

    def install(self, source: Path, valves: dict[str, Any]) -> None:
        """A filter function, switched on."""
        form = {"id": FILTER, "name": "The crowd's answers", "content": source.read_text(), "meta": {"description": ""}}
        self._post("/api/v1/functions/create", form)
        self._post(f"/api/v1/functions/id/{FILTER}/toggle")
        self._post(f"/api/v1/functions/id/{FILTER}/valves/update", valves)

    def publish(self, model: str, name: str, filters: tuple[str, ...] = ()) -> None:
        """Let everybody use a model, under this name and with these filters."""
        meta = {"filterIds": list(filters)}
        self._post("/api/v1/models/create", {"id": model, "name": name, "meta": meta, "params": {}, "access_grants": PUBLIC})

    def _post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._http.post(path, json=body).raise_for_status().json()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
