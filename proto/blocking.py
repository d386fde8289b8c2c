"""Generator of the blocking client from the asyncio client."""

from __future__ import annotations

import io
import subprocess
import sysconfig
import tokenize
from pathlib import Path

RUFF = Path(sysconfig.get_path("scripts")) / "ruff"

TEXTS = {
    "The Python client for asyncio. `make proto` generates the blocking one from this file.":
    "The blocking Python client. Generated from asynchronous.py by `make proto`; never edited.",
    "for asyncio. Use it only in the event loop that it was made in.":
    "that blocks. Safe to use from several threads.",
    "in the event loop, with a few\n": "in a thread of its own, with a few\n",
    " | AsyncIterable[ImageLike]": "",
    " | AsyncIterable[NamedImage]": "",
}  # fmt: skip
"""Texts of the asyncio client and their replacements."""

NAMES = {
    "AsyncClient": "Client",
    "AsyncGenerator": "Generator",
    "AsyncIterator": "Iterator",
    "ClassifierServiceAsyncStub": "ClassifierServiceStub",
    "ModelServiceAsyncStub": "ModelServiceStub",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "aclose": "close",
    "aclosing": "closing",
    "async_calls": "blocking_calls",
}
"""Names of the asyncio client and their replacements."""


def client(source: str) -> str:
    """Return the source of the blocking client; ``source`` is the asyncio client."""
    for text, other in TEXTS.items():
        assert text in source, f"asynchronous.py no longer has {text!r}"
        source = source.replace(text, other)
    lines = source.splitlines(keepends=True)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    for token in reversed([token for token in tokens if token.type == tokenize.NAME]):
        (row, start), (_, end) = token.start, token.end
        before, after = lines[row - 1][:start], lines[row - 1][end:]
        if token.string in {"async", "await"}:
            lines[row - 1] = before + after.lstrip()
        elif token.string in NAMES:
            lines[row - 1] = before + NAMES[token.string] + after
    fixed = _ruff(
        "check",
        "--fix",
        "--unsafe-fixes",
        "--quiet",
        "--select=F401,I001,UP028",
        source="".join(lines),
    )
    return _ruff("format", "--quiet", source=fixed)


def _ruff(*command: str, source: str) -> str:
    """Return ``source`` after ruff has changed it."""
    ruff = [str(RUFF), *command, "--stdin-filename=service/topwork/client/blocking.py", "-"]
    done = subprocess.run(ruff, input=source, capture_output=True, text=True, check=True)
    return done.stdout
