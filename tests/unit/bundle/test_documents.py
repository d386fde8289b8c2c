"""Documents are decoded in one module only, by types that were examined at import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import golden

import topwork
import topwork_trainer

KINDS = sorted(golden.kinds(), key=lambda kind: kind.__name__)

FIRST_LOOK = """
import pkgutil, sys, threading, time
from pathlib import Path
from topwork.bundle.documents import from_data, from_json, from_toml, to_data, to_json

kind = pkgutil.resolve_name(sys.argv[1])
content = Path(sys.argv[2]).read_bytes()
begun, done = threading.Event(), threading.Event()

def dawdle(*_):
    begun.set()
    time.sleep(0)  # lets another thread go on

def decode():
    if sys.argv[2].endswith(".toml"):
        return from_toml(content, kind)
    value = from_json(content, kind, name="it")
    assert from_data(to_data(value), kind) == value
    assert from_json(to_json(value), kind, name="it") == value

def first():
    sys.setprofile(dawdle)
    decode()
    sys.setprofile(None)
    done.set()

def later(number):
    begun.wait()
    while not done.wait(0.001 * number):
        decode()

threads = [threading.Thread(target=later, args=[number]) for number in range(1, 8)]
threads.append(threading.Thread(target=first))
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
"""One thread decodes a document for the first time, with a pause at every call of Python code, and
seven others decode it meanwhile. With types that msgspec examines only then, half of all kinds
died of SIGSEGV in each run.
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_first_decode_by_eight_threads_does_not_crash(kind: type) -> None:
    """In a fresh interpreter eight threads decode a document at once, and the process lives."""
    where = f"{kind.__module__}:{kind.__qualname__}"
    path = golden.newest(kind)
    done = subprocess.run(
        [sys.executable, "-c", FIRST_LOOK, where, str(path)], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_only_documents_decodes() -> None:
    """No other module decodes with msgspec, which would examine a type while threads run."""
    roots = [Path(str(one.__file__)).parent for one in (topwork, topwork_trainer)]
    found = {
        path.name
        for root in roots
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in {"decode", "convert", "Decoder"}
        and re.fullmatch(r"msgspec(\.\w+)?", ast.unparse(node.value))
    }
    assert found == {"documents.py"}


def test_msgspec_is_imported_by_its_name() -> None:
    """Nobody imports a function of msgspec alone, which the test above would not see."""
    roots = [Path(str(one.__file__)).parent for one in (topwork, topwork_trainer)]
    found = [
        node.module
        for root in roots
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("msgspec")
    ]
    assert found == []
