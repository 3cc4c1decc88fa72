"""The README's code runs as it stands, each block after those that it builds on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sharedrag import Pool

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("which", [[0], [0, 1], [2]], ids=["pool", "search", "llama-index"])
def test_code_runs(which: list[int], pool_path: str) -> None:
    """Twice in processes of their own, on a pool elsewhere, each block does what it says."""
    assert len(BLOCKS) == 3
    blocks = [BLOCKS[number].replace("/dev/shm/hawaii.pool", pool_path) for number in which]
    for block in (*blocks, blocks[-1]):
        subprocess.run([sys.executable, "-c", block], check=True, timeout=110, capture_output=True)
    with Pool.open(pool_path) as pool:
        (name,) = pool.collections()
        assert len(pool.collection(name)) >= 1
        assert pool.collection(name).embedding_model == "all-MiniLM-L6-v2"
