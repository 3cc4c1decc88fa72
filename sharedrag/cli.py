"""The `sharedrag` command: make a pool, look into it, check it, tidy it, fill it, ask it, serve it.

Exit codes: 0 all is well; 1 the command failed, or `verify` found problems; 2 the command line is wrong. Errors go to
standard error as one panel that says what failed and what to do; there are no tracebacks for what a user can meet.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import Progress
from typer.core import TyperGroup

from sharedrag import Pool, cli_top, cli_transfer, cli_view
from sharedrag.cli_base import (
    AsJson,
    EmbedderOption,
    NodeOption,
    PoolPath,
    console,
    group_of,
    has_history,
    open_history,
    open_pool,
    show,
)
from sharedrag.embed import MINILM, load_embedder
from sharedrag.errors import CollectionNotFound, SharedRagError


class CleanErrors(TyperGroup):
    """Shows what a user can meet (a missing pool, a full disk, no permission) as a panel instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn errors of the pool and of the system into exit code 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader of a pipe has seen enough: not worth a word
        except (SharedRagError, OSError) as error:
            console(stderr=True).print(cli_view.error_panel(error))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=CleanErrors,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""One memory that many processes share: chat history, documents and their vectors in a **pool**.

A pool is a file, best on `/dev/shm`. Every process that opens it by its path reads it in place and appends to it; what
one writes, the others find in their very next query.

```
sharedrag create /dev/shm/team.pool --capacity "1 GiB"
sharedrag info /dev/shm/team.pool --watch
sharedrag ask /dev/shm/team.pool "Do I need to book parking at Diamond Head?"
sharedrag demo
```
""",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sharedrag {version('sharedrag')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    # no docstring: the help is the app's own
    del show_version


@app.command()
def create(
    path: PoolPath,
    capacity: Annotated[
        str, typer.Option("--capacity", "-c", help="How much it may hold: a number of bytes, or '512 MiB', '2 GiB'.")
    ] = "2 GiB",
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="How many lock domains: one a host or container.")] = 1,
    preallocate: Annotated[bool, typer.Option("--preallocate", help="Take all memory now, and keep it.")] = False,
) -> None:
    """Make a pool. A pool that is there already is left as it is.

    Memory is taken as records arrive, not now: an empty pool of 100 GiB costs next to nothing. With --preallocate all of
    it is taken at once and kept: writes are faster and more even, and other programs cannot use it up.

    ```
    sharedrag create /dev/shm/team.pool
    sharedrag create /dev/shm/team.pool --capacity "16 GiB" --nodes 4
    ```
    """
    existed = Path(path).exists()
    with open_pool(path, "create", create=True, capacity=capacity, nodes=nodes, preallocate=preallocate) as pool:
        info = pool.info()
    done = "It was there already and is left as it is" if existed else "Created"
    terminal = console()
    terminal.print(f"{done}: {cli_view.size(info.capacity)} for records, {len(info.nodes)} node(s).", highlight=False)
    terminal.print(f"Open it from any process with Pool.open({path!r}).", highlight=False, markup=False)


@app.command()
def info(
    path: PoolPath,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it live until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.05, help="Seconds between looks with --watch.")] = 1.0,
    node: NodeOption = 0,
) -> None:
    """Show what is in a pool, and who has it open.

    Collections with their rows and segments; **lanes**, the rights to append, and which process holds each; attached
    processes with their memory: *private* is what a process costs, *shared* is counted once however many share it.

    ```
    sharedrag info /dev/shm/team.pool
    sharedrag info /dev/shm/team.pool --watch
    sharedrag info /dev/shm/team.pool --json | jq .collections
    ```
    """
    with open_pool(path, "info", node=node) as pool:
        if as_json:
            while True:
                typer.echo(pool.info().model_dump_json(indent=None if watch else 2))
                if not watch:
                    return
                time.sleep(every)
        terminal = console()
        if not watch:
            terminal.print(cli_view.pool_view(pool.info()))
            return
        _watch(pool, terminal, every)


@app.command()
def verify(path: PoolPath, as_json: AsJson = False, node: NodeOption = 0) -> None:
    """Read every record of a pool and check its sums. Exit code 1 if something is wrong.

    It reads only, while others go on writing. For each problem it prints where (the offset in bytes from the start of
    the file), what, and what to do.

    ```
    sharedrag verify /dev/shm/team.pool && echo fine
    ```
    """
    bar = Progress(console=console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    with open_pool(path, "verify", node=node) as pool, bar:
        task = bar.add_task("checking rows", total=None)
        report = pool.verify(lambda done, total: bar.update(task, completed=done, total=total))
    show(report.model_dump_json(indent=2) if as_json else cli_view.verify_view(report))
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def maintain(
    path: PoolPath,
    as_json: AsJson = False,
    stay: Annotated[bool, typer.Option("--stay", help="Go on until stopped, whenever there is something to do.")] = False,
    share: Annotated[
        float, typer.Option("--share", min=0.01, max=1.0, help="With --stay: the share of one core it may take.")
    ] = 0.5,
    wait: Annotated[
        float, typer.Option("--wait", min=0, help="How many seconds another process may be at it before this gives up.")
    ] = 60.0,
    node: NodeOption = 0,
) -> None:
    """Do now what is due: merge, index, drop what is superseded, give memory back.

    Processes that have the pool open do this by themselves, little by little; this is for a pool that nobody has open, or
    for now rather than soon. With --stay it is the pool's one maintainer, so that no process that answers has to be.

    ```
    sharedrag maintain /dev/shm/team.pool
    sharedrag maintain /dev/shm/team.pool --stay --share 0.3
    ```
    """
    if stay:
        with Pool.open(path, name="sharedrag maintain", maintenance=share, node=node):
            _until_stopped()
        return
    with open_pool(path, "maintain", node=node) as pool:
        report = pool.settle(wait)
    show(report.model_dump_json(indent=2) if as_json else cli_view.maintenance_view(report))


def _until_stopped() -> None:
    """Return at SIGTERM or SIGINT."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()


@app.command()
def ask(
    path: PoolPath,
    question: Annotated[str, typer.Argument(help="The question, in your own words.")],
    group: Annotated[
        str | None, typer.Option("--group", "-g", help="Whose history to ask, by name or id. Default: the only group's.")
    ] = None,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection", help="Search this collection instead. Default without a history: the only one with vectors."
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="How many answers.")] = 5,
    where: Annotated[
        list[str] | None, typer.Option("--where", help="Of a collection: only records with this KEY=VALUE; may be repeated.")
    ] = None,
    embedder: EmbedderOption = None,
    as_json: AsJson = False,
    node: NodeOption = 0,
) -> None:
    """Ask the pool: what the crowd of a group answered, best first; or the nearest records of a collection.

    ```
    sharedrag ask /dev/shm/team.pool "Is there a ferry to Maui?" --group hawaii
    sharedrag ask /dev/shm/hawaii.pool "Where to snorkel?" -k 3 --where author=Leilani
    ```
    """
    if not question.strip():
        raise typer.BadParameter("the question is empty", param_hint="QUESTION")
    conditions = _conditions(where or [])
    if group is not None and (collection or conditions):
        raise typer.BadParameter("--group asks a history, --collection and --where a collection: say one of them")
    with open_pool(path, "ask", node=node) as pool:
        if group is not None or not (collection or conditions or not has_history(pool)):
            _ask_history(pool, question, group, count, embedder, as_json)
        else:
            _ask_collection(pool, question, collection, count, conditions, embedder, as_json)


def _ask_history(pool: Pool, question: str, group: str | None, count: int, embedder: str | None, as_json: bool) -> None:
    if not has_history(pool):
        raise CollectionNotFound(
            "there is no history", operation="ask", path=pool.path, hint="`sharedrag import` or `sharedrag serve` make one"
        )
    history = open_history(pool, embedder)
    asked = group_of(history, group, "; or search a collection: --collection")
    started = time.perf_counter()
    answers = history.ask(asked.id, question, count)
    seconds = time.perf_counter() - started
    if as_json:
        show(json.dumps([one.model_dump(mode="json") for one in answers], ensure_ascii=False, indent=2))
    else:
        show(cli_view.crowd_view(question, answers, asked.name, seconds))


def _ask_collection(
    pool: Pool,
    question: str,
    collection: str | None,
    count: int,
    conditions: dict[str, Any],
    embedder: str | None,
    as_json: bool,
) -> None:
    name = collection or _collection_to_ask(pool)
    if name not in pool.collections():
        known = ", ".join(pool.collections()) or "none yet"
        raise CollectionNotFound(f"no collection {name!r}", operation="ask", path=pool.path, hint=f"There is: {known}")
    searched = pool.collection(name)
    model = load_embedder(embedder or searched.embedding_model or MINILM)
    started = time.perf_counter()
    vector = model.embed_query(question)
    embedded = time.perf_counter()
    hits = searched.search(vector, k=count, filter=conditions or None)
    seconds = (embedded - started, time.perf_counter() - embedded)
    if as_json:
        show(json.dumps([cli_view.hit_json(hit) for hit in hits], ensure_ascii=False, indent=2))
    else:
        show(cli_view.answers_view(question, hits, searched.name, len(searched), seconds))


@app.command()
def serve(
    pool: Annotated[
        str | None, typer.Option("--pool", "-p", help="The pool, made if it is not there. Default: /dev/shm/sharedrag.pool.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Processes that answer.")] = 2,
    host: Annotated[str, typer.Option("--host", help="Where to listen; 0.0.0.0 for all addresses.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    capacity: Annotated[str | None, typer.Option("--capacity", "-c", help="Of a pool that is made now.")] = None,
    node: Annotated[int | None, typer.Option("--node", min=0, help="The node (lock domain) to attach as.")] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="Lock domains of a pool that is made now.")] = None,
    label: Annotated[
        str | None, typer.Option("--label", help="What this node calls itself. Default: the host's name.")
    ] = None,
    access_log: Annotated[bool, typer.Option("--access-log", help="One line for each request.")] = False,
) -> None:
    """Serve a pool's history over HTTP: groups, conversations, and the crowd's answers, with OpenAI's API among the rest.

    The admin key is SHAREDRAG_ADMIN_KEY; where that is not set, the first start on a pool makes one and shows it this once.
    A start with another SHAREDRAG_ADMIN_KEY replaces it, on every node that serves the pool.

    Every setting is a variable SHAREDRAG_...: README, "As a service".

    ```
    sharedrag serve --pool /dev/shm/team.pool --workers 2 --port 8000
    ```
    """
    _require_own("server", needs="fastapi", operation="serve", hint="pip install 'sharedrag[server,light]'")
    from server.serve import prepare
    from server.serve import serve as run
    from server.settings import Settings, told

    given = {"pool": pool, "capacity": capacity, "node": node, "nodes": nodes, "label": label}
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        admin_key = prepare(settings)
    except SharedRagError:
        raise
    except ValueError as error:  # an option or variable that means nothing, or does not fit the pool
        raise typer.BadParameter(told(error)) from None
    if admin_key.made is not None:
        typer.echo(f"Admin key (shown this once, keep it): {admin_key.made}")
    elif admin_key.replaced:
        typer.echo("The admin key is now this SHAREDRAG_ADMIN_KEY; that of an earlier start no longer counts, on any node.")
    sys.stdout.flush()
    raise typer.Exit(run(settings, host, port, workers, access_log))


app.command("import")(cli_transfer.import_)
app.command("export")(cli_transfer.export)
app.command("top")(cli_top.top)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def demo(ctx: typer.Context) -> None:
    """Watch four processes share one memory: a Hawaii travel group's chat, offline, in about two minutes.

    Options are the demo's own: `sharedrag demo --help` lists them.

    ```
    sharedrag demo
    sharedrag demo --quick
    ```
    """
    _require_own(
        "demos", needs="llama_index", operation="demo", hint="pip install 'sharedrag[demo]', or `make demo` in a clone"
    )
    # The demo becomes this process, so that Ctrl-C and the exit code are its own.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "demos.hawaii", *ctx.args])


def _require_own(package: str, *, needs: str, operation: str, hint: str) -> None:
    """Raise unless this package beside ours is there with what it needs, and no other of its name is found first."""
    found = importlib.util.find_spec(package)
    if found is None or importlib.util.find_spec(needs) is None:
        raise SharedRagError(f"what `{operation}` needs is not installed", operation=operation, hint=hint)
    if found.origin is None or Path(found.origin).parents[1] != Path(__file__).parents[1]:
        where = found.origin or ", ".join(found.submodule_search_locations or ())
        advice = f"Run `sharedrag {operation}` in another folder, or take that one off PYTHONPATH"
        raise SharedRagError(f"another module `{package}` is found first: {where}", operation=operation, hint=advice)


def _watch(pool: Pool, terminal: Console, every_s: float) -> None:
    """The pool on the whole screen, looked at again and again; Ctrl-C leaves the last look behind and goes on up."""
    view = cli_view.pool_view(pool.info())
    try:
        with Live(view, console=terminal, auto_refresh=False, screen=terminal.is_terminal) as live:
            while True:
                time.sleep(every_s)
                view = cli_view.pool_view(pool.info())
                live.update(view, refresh=True)
    except KeyboardInterrupt:
        if terminal.is_terminal:
            terminal.print(view)
        raise


def _collection_to_ask(pool: Pool) -> str:
    """`history` if there is one, else the only collection with vectors; CollectionNotFound if none or several."""
    searchable = [one.name for one in pool.info().collections if one.dimension]
    if "history" in searchable or len(searchable) == 1:
        return "history" if "history" in searchable else str(searchable[0])
    hint = f"Choose with --collection: {', '.join(searchable)}" if searchable else "Write records with vectors first"
    what = "there are several collections with vectors" if searchable else "there is no collection with vectors"
    raise CollectionNotFound(what, operation="ask", path=pool.path, hint=hint)


def _conditions(pairs: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` pairs as a filter; a value that is JSON (7, true, "7") is taken as such, else as text."""
    conditions = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not key or not separator:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--where")
        try:
            conditions[key] = json.loads(value)
        except ValueError:
            conditions[key] = value
    return conditions
