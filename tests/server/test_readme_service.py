"""The README's shell lines under "As a service" do what they say."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_shell_lines_work(pool_path: str) -> None:
    """Served, Ann's answer is found by Bob."""
    (block,) = re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    block = block.replace("/dev/shm/team.pool", pool_path).replace("8000", str(port))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    shell = subprocess.Popen(
        ["bash", "-eu", "-o", "pipefail", "-c", block + "\nkill %1; wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        printed, errors = shell.communicate(timeout=200)
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
    last = printed.strip().splitlines()[-1] if printed.strip() else ""
    found = json.loads(last[last.index('{"answers"') :])["answers"]
    assert found[0]["answer"] == "There is none; fly." and found[0]["author"] == "ann", errors
