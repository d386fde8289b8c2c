"""Output to terminals: no text of a file, a server or a label can control the terminal."""

from __future__ import annotations

import io
import sys
from typing import Any

import rich.console
from rich.text import Text

from topwork.printable import printable


class Console(rich.console.Console):
    """rich's console; strings are printed with their control characters escaped, line by line."""

    def render_str(self, text: str, **options: Any) -> Text:
        """See rich.console.Console."""
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)


def escape_unencodable() -> None:
    """Let standard output escape what its encoding lacks, as standard error does, not fail."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
