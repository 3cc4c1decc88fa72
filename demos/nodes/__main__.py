"""Three nodes over one shared memory, end to end: `python -m demos.nodes` (`make demo-nodes`).

Builds the images, starts docker-compose.yml, shows what its loader says, kills node2 in the midst of it and starts it again,
and looks at the pool in the end. The exit code is 1 if anything was lost or not found.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from demos.nodes.compose import Engine, NoEngine

KILLED = "node2"
SERVICES = ("node1", "node2", "node3", "maintainer")
_KILL_AT = 0.3  # of the messages
_DOWN_S = 6.0
_PROGRESS = re.compile(r"loaded (\d+) of (\d+) messages")
POOL = "/pool/travel.pool"


class Killer:
    """Kills a node once when enough was loaded, and starts it again a little later."""

    def __init__(self, engine: Engine, console: Console) -> None:
        self._engine, self._console = engine, console
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def look(self, line: str) -> None:
        """At each line that the loader prints."""
        found = _PROGRESS.search(line)
        if found and self._thread is None and int(found[1]) >= _KILL_AT * int(found[2]):
            self._thread = threading.Thread(target=self._strike)
            self._thread.start()

    def _strike(self) -> None:
        try:
            self._kill_and_start()
        except BaseException as error:  # noqa: BLE001 (raised by whoever asks whether it was struck)
            self._error = error

    def _kill_and_start(self) -> None:
        self._console.print(f"[bold red]kill -9 {KILLED}[/]: the others go on")
        self._engine.kill(KILLED)
        time.sleep(_DOWN_S)
        self._engine.start(KILLED)
        self._console.print(f"[bold green]{KILLED} is started again[/]: there is nothing that it has to load")

    @property
    def struck(self) -> bool:
        """True if a node was killed and started again; waits for that."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._thread is not None


def _pool_table(engine: Engine) -> Table:
    """Who has the pool open, and what it holds. A container sees the memory of its own processes only, so each is asked."""
    table = Table("container", "process", "private memory", title="One pool, and who has it open")
    told: dict[str, Any] = {}
    for service in SERVICES:
        told = json.loads(engine.execute(service, "sharedrag", "info", POOL, "--json"))
        for one in told["sessions"]:
            if one["memory_private"] is not None and one["label"] != "sharedrag info":
                table.add_row(service, str(one["pid"]), f"{one['memory_private'] / 1e6:.0f} MB")
    table.caption = f"{sum(one['rows'] for one in told['collections']):,} records, once: {told['reserved'] / 1e6:.0f} MB"
    return table


def main() -> int:
    """Build, run, kill, look, stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave it running: the page is on http://127.0.0.1:8000")
    parser.add_argument("--no-build", action="store_true", help="use the images that are there")
    chosen = parser.parse_args()
    console = Console()
    environment = {"SHAREDRAG_ADMIN_KEY": f"sr_{secrets.token_urlsafe(24)}"} | dict(os.environ)
    try:
        engine = Engine(environment)
    except NoEngine as error:
        console.print(f"[red]{error}.[/] Install one of them and try again.")
        return 2
    console.print(f"Using {engine.name}.")
    if not chosen.no_build:
        console.print("Building the images: some minutes for the first time")
        engine.compose("build", quiet=not console.is_terminal)
    began = time.monotonic()
    try:
        engine.up()
        console.print(f"Up after {time.monotonic() - began:.0f} s: three nodes, a balancer, a maintainer, a loader")
        killer = Killer(engine, console)
        for line in engine.lines("loader"):
            console.print(f"[dim]loader |[/] {line}", highlight=False, soft_wrap=True)
            killer.look(line)
        struck, code = killer.struck, engine.exit_code("loader")
        console.print(_pool_table(engine))
    except subprocess.CalledProcessError as error:
        console.print(f"[red]{' '.join(error.cmd)} failed:[/]\n{error.stdout or ''}{error.stderr or ''}")
        return 1
    finally:
        if not chosen.keep:
            engine.down()
    if chosen.keep:
        console.print(f"The page: http://127.0.0.1:8000  (admin key: {environment['SHAREDRAG_ADMIN_KEY']})")
    console.print(f"Image {engine.image_mb():.0f} MB; {time.monotonic() - began:.0f} s without building")
    if not struck:
        console.print(f"[yellow]{KILLED} was not killed: too few messages were loaded for that[/]")
    console.print("[bold green]All well[/]" if not code else "[bold red]Something was lost or not found[/]")
    return int(code != 0 or not struck)


if __name__ == "__main__":
    sys.exit(main())
