"""The README's code runs as it stands, each block after those that it builds on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sharedrag import Pool
from tests.server.serving import Crowd, Serving, said

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
EMBEDDED = {"all-MiniLM-L6-v2"}


def run(block: str, pool_path: str) -> str:
    """What a block prints, in a process of its own, on a pool elsewhere."""
    block = re.sub(r"/dev/shm/\w+\.pool", pool_path, block)
    return subprocess.run([sys.executable, "-c", block], check=True, timeout=110, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.parametrize(
    "which", [[0], [0, 1], [2], [3], [4]], ids=["pool", "search", "llama-index", "chat engine", "langchain"]
)
def test_code_runs(which: list[int], pool_path: str) -> None:
    """Twice, each block does what it says."""
    assert len(BLOCKS) == 6
    for number in (*which, which[-1]):
        run(BLOCKS[number], pool_path)
    with Pool.open(pool_path) as pool:
        stored = [pool.collection(name) for name in pool.collections()]
        assert stored and all(len(one) >= 1 for one in stored)
        assert {one.embedding_model for one in stored} - {None} == EMBEDDED


def test_the_chat_engine_says_what_ann_was_told(pool_path: str) -> None:
    """With her name."""
    printed = run(BLOCKS[3], pool_path)
    assert "No; fly." in printed and "ann" in printed


def test_openais_sdk_needs_another_url_and_key_only(pool_path: str) -> None:
    """The service's block, against a service."""
    with Serving(pool_path, 1) as server:
        crowd = Crowd(server)
        with crowd.as_user("ann") as ann:
            said(ann, "Is there a ferry to Maui?", "No; fly.")
        block = BLOCKS[5].replace("http://127.0.0.1:8000", server.url).replace("KEY", crowd.key("bob"))
        printed = run(block, pool_path)
    assert printed.startswith("No; fly.") and "'author': 'ann'" in printed
