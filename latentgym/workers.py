"""What every worker process does first: leave Ctrl-C to its parent, and never outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def follow_parent() -> None:
    """Ignore SIGINT, which the parent handles, and end this process as soon as the one that started it is gone.

    A pool's workers notice nothing by themselves when their parent is killed: they wait for work for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # Not os.getppid(): behind a fork server that is the server, which lives as long as its workers do.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
