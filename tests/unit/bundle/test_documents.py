"""Documents are decoded in one module only, with decoders that are built at import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from support import golden

import topwork
import topwork_trainer
from topwork.serving.encoders import messages

KINDS = sorted(golden.kinds(), key=lambda kind: kind.__name__)

RACE = """
import pkgutil, sys, threading, time
from pathlib import Path
from topwork.bundle.documents import from_data, from_json, from_toml, to_data, to_json

kind = pkgutil.resolve_name(sys.argv[1])
content = Path(sys.argv[2]).read_bytes()
begun, done = threading.Event(), threading.Event()

def yield_thread(*_):
    begun.set()
    time.sleep(0)  # lets another thread run

def decode():
    if sys.argv[2].endswith(".toml"):
        return from_toml(content, kind)
    value = from_json(content, kind, name="it")
    assert from_data(to_data(value), kind) == value
    assert from_json(to_json(value), kind, name="it") == value

def first():
    sys.setprofile(yield_thread)
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
"""One thread decodes a document for the first time and yields at every Python call, while seven
others decode it. With types that msgspec inspects at the first decoding, half of the processes
crashed with SIGSEGV.
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_first_decode_by_eight_threads_does_not_crash(kind: type) -> None:
    """A new process in which eight threads decode a document at once exits with status 0."""
    where = f"{kind.__module__}:{kind.__qualname__}"
    path = golden.newest(kind)
    done = subprocess.run(
        [sys.executable, "-c", RACE, where, str(path)],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
def test_only_the_documents_module_decodes() -> None:
    """No other module decodes with msgspec, which could inspect a type while threads run.

    The decoders of messages between processes are made when their module is imported.
    """
    roots = [Path(str(package.__file__)).parent for package in (topwork, topwork_trainer)]
    found = set()
    for path in (path for root in roots for path in root.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        types = [node.value for node in nodes if isinstance(node, ast.Subscript)]  # Decoder[T]
        found |= {
            path.name
            for node in nodes
            if isinstance(node, ast.Attribute)
            and node.attr in {"decode", "convert", "Decoder"}
            and re.fullmatch(r"msgspec(\.\w+)?", ast.unparse(node.value))
            and node not in types
        }
    assert found == {"documents.py", "messages.py", "specs.py"}
    assert isinstance(messages.REQUESTS, msgspec.msgpack.Decoder)
    assert isinstance(messages.RESPONSES, msgspec.msgpack.Decoder)


@pytest.mark.slow
def test_msgspec_is_imported_as_a_module() -> None:
    """No module imports names from msgspec, which the test above would miss."""
    roots = [Path(str(package.__file__)).parent for package in (topwork, topwork_trainer)]
    found = [
        node.module
        for root in roots
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("msgspec")
    ]
    assert found == []
