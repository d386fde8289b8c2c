"""``python -m soak.server``: the ``topwork`` command with hooks at every named step."""

from __future__ import annotations

from soak import steps
from topwork.cli import main

if __name__ == "__main__":
    steps.install("server")
    main()
elif __name__ == "__mp_main__":  # in a worker: multiprocessing imports its parent's main module
    steps.install("worker")
