"""The console's CSV files, written by its module in Node."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

import topwork.gateway

MODULE = Path(topwork.gateway.__path__[0]) / "console" / "csv.js"
SCRIPT = """
const { csv } = await import(process.argv[1]);
process.stdout.write(csv(JSON.parse(process.argv[2])));
"""


def written(rows: Sequence[Sequence[object]]) -> list[list[str]]:
    """Return what a reader of CSV finds in the file that the console makes of rows."""
    done = subprocess.run(
        ["node", "--input-type=module", "-e", SCRIPT, MODULE.as_uri(), json.dumps(rows)],  # noqa: S607  # of PATH
        capture_output=True,
        timeout=30,
        check=True,
    )
    text = done.stdout.decode()
    assert text.startswith("\ufeff")
    return [*csv.reader(io.StringIO(text[1:], newline=""), strict=True)]


@pytest.mark.skipif(not shutil.which("node"), reason="Node is not installed")
def test_texts_survive_and_formulas_become_texts() -> None:
    """Commas, quotes and lines survive; what a spreadsheet would compute gets an apostrophe."""
    plain = ["a.jpg", 'a,"b".jpg', "two\r\nlines", "2-a.jpg", "雛菊=1", "", "a\tb"]
    formulas = ["=1", "+1", "-1", "@SUM(1)", " =1", "\t=1", "\u200b=1", "\uff1d1", "\tx", "\rx"]
    assert written([plain, formulas, [0.25, -1, "-1"]]) == [
        plain,
        [f"'{text}" for text in formulas],
        ["0.25", "-1", "'-1"],
    ]
