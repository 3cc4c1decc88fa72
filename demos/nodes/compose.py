"""The compose engine that is here: Docker's, or Podman's."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE, VOLUME = "sharedrag:latest", "sharedrag_pool"
_PROJECT = ("--project-name", "sharedrag")


class NoEngine(RuntimeError):
    """Neither Docker with compose nor podman-compose runs here."""


def _runs(*command: str) -> bool:
    if not shutil.which(command[0]):
        return False
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


class Engine:
    """`docker compose` or `podman-compose` for this repository's compose file."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Raises `NoEngine`."""
        self._environment = dict(environment)
        if _runs("docker", "info") and _runs("docker", "compose", "version"):
            self._engine, self._compose = "docker", ["docker", "compose", *_PROJECT]
        elif _runs("podman", "info") and shutil.which("podman-compose"):
            self._engine, self._compose = "podman", ["podman-compose", *_PROJECT]
        else:
            raise NoEngine("neither a running Docker with `docker compose` nor podman with podman-compose is here")

    @property
    def name(self) -> str:
        """Of the engine, for people."""
        return " ".join(self._compose[: -len(_PROJECT)])

    def compose(self, *arguments: str, quiet: bool = True) -> None:
        """Run a compose command to its end. Raises `CalledProcessError` with its output."""
        output = subprocess.PIPE if quiet else None
        subprocess.run(
            [*self._compose, *arguments],
            cwd=REPOSITORY,
            env=self._environment,
            check=True,
            stdout=output,
            stderr=subprocess.STDOUT if quiet else None,
            text=True,
        )

    def up(self) -> None:
        """Start everything, from nothing."""
        self.down()
        if self._engine == "podman":  # podman-compose before 1.1 makes a plain volume, whatever the file says
            options = ("--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=mode=1777")
            self._run("volume", "create", *options, VOLUME)
        self.compose("up", "--detach")

    def down(self) -> None:
        """Stop everything and forget the pool."""
        self.compose("down")
        subprocess.run(
            [self._engine, "volume", "rm", "--force", VOLUME],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )

    def container(self, service: str) -> str:
        """The name of a service's container."""
        names = self._run("ps", "--all", "--format", "{{.Names}}").split()
        return next(name for name in names if name in (f"sharedrag-{service}-1", f"sharedrag_{service}_1"))

    def kill(self, service: str) -> None:
        """SIGKILL for all of a container, at once."""
        name = self.container(service)
        before = self._pid(name)
        try:
            self._run("kill", "--signal", "KILL", name)
        except subprocess.CalledProcessError:  # podman may say so of a container that was gone before it had looked again
            if self._pid(name) == before:
                raise

    def _pid(self, container: str) -> str:
        return self._run("inspect", "--format", "{{.State.Pid}}", container)

    def start(self, service: str) -> None:
        """Start a container that was killed."""
        self._run("start", self.container(service))

    def lines(self, service: str) -> Iterator[str]:
        """What a service prints, until it ends."""
        follow = [self._engine, "logs", "--follow", self.container(service)]
        with subprocess.Popen(follow, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                yield line.rstrip("\n")

    def exit_code(self, service: str) -> int:
        """Of a container that has ended."""
        return int(self._run("inspect", "--format", "{{.State.ExitCode}}", self.container(service)))

    def image_mb(self) -> float:
        """The image's size, in units of 1,000,000 bytes."""
        return float(json.loads(self._run("image", "inspect", IMAGE))[0]["Size"]) / 1e6

    def execute(self, service: str, *command: str) -> str:
        """What a command prints inside a service's container."""
        return self._run("exec", self.container(service), *command)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([self._engine, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()
