"""Workers end with the process that started them, however it ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing, os, signal, sys
from concurrent.futures import ProcessPoolExecutor
from latentgym.workers import follow_parent

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=follow_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_worker_ends_with_its_killed_parent(tmp_path: Path, method: str) -> None:
    script = tmp_path / "pool.py"
    script.write_text(SCRIPT)
    # Through a file: a pipe would stay open as long as the worker that must not stay.
    with (tmp_path / "pid").open("w") as out:
        subprocess.run([sys.executable, str(script), method], stdout=out, check=False, timeout=60)
    pid, deadline_s = int((tmp_path / "pid").read_text()), time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
