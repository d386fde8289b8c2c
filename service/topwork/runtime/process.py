"""Process-wide settings: memory of Pillow, warnings, open files, telemetry of ONNX Runtime."""

from __future__ import annotations

import os
import resource
import warnings

_ENVIRONMENT = {
    # Without it recent versions report to their makers what they run, and keep a database of it in
    # the user's home.
    "ORT_DISABLE_TELEMETRY": "1",
    # Pillow gives each image's memory back to the system and takes pages anew for the next one,
    # which costs a quarter of a JPEG's decoding, and more where many threads do so. It keeps this
    # much: 32 blocks.
    "PILLOW_BLOCK_SIZE": "4m",
    "PILLOW_BLOCKS_MAX": "32",
}
"""Read by the libraries when they are imported; children inherit it."""

_NOISY = (r"PIL\.", r"pydicom\.")
"""Modules that warn of damaged files, in texts as varied as the damage: each stays in memory."""


def configure() -> None:
    """Set up this process. Called by entry points, before they import what reads the settings.

    Variables of the environment that are set already stay as they are.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for module in _NOISY:
        warnings.filterwarnings("ignore", module=module)
    _allow_many_files()


def _allow_many_files() -> None:
    """Raise the soft limit of open files to the hard one: each mapped shard keeps its file open.

    The soft limit is 1,024 on many hosts, for the sake of programs that use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
