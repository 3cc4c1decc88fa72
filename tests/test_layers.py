"""Each layer imports only downward, as ARCHITECTURE.md says."""

from __future__ import annotations

import ast
from pathlib import Path

import sharedrag

ROOT = Path(sharedrag.__file__).parent
#: From the ground up; a module may import its own layer and those below it.
LAYERS = (
    ("errors", "faults", "turns"),
    ("memory",),
    ("arena",),
    ("segments",),
    ("filters", "info", "search", "maintenance"),
    ("writer", "keeper", "collection", "pool", "embed", "watch", "chats"),
    ("history",),
    ("transfer",),
    ("__init__", "llama_index", "langchain", "cli", "cli_base", "cli_top", "cli_transfer", "cli_view", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def _imported(source: Path) -> set[str]:
    """The modules or packages of ours that a source imports when it is loaded or run, not only for its types."""
    tree = ast.parse(source.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sharedrag."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "sharedrag":
            found |= {name.name if name.name in RANK else "__init__" for name in node.names}
    return found


def test_every_module_imports_only_downward() -> None:
    """No module imports from a layer above its own."""
    upward = []
    for source in sorted(ROOT.rglob("*.py")):
        own = source.relative_to(ROOT).parts[0].removesuffix(".py")
        upward += [f"{source.relative_to(ROOT)} imports {name}" for name in _imported(source) if RANK[name] > RANK[own]]
    assert not upward


def test_every_module_has_a_layer() -> None:
    """Whoever adds a module says where it belongs."""
    assert {source.stem for source in ROOT.glob("*.py")} | {p.parent.name for p in ROOT.glob("*/__init__.py")} == set(RANK)
