"""What every worker process of ours does."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """End this worker when the process that started it ends, even by a kill.

    One that lived on would get into the way of the run that goes on.
    """
    threading.Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
