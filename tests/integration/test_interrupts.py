"""Ctrl-C in commands while they import modules, start and run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support import servers

from topwork.runtime.interrupts import STATUS

# Background jobs of a shell ignore SIGINT, and their child processes inherit that.
INTERRUPTIBLE = "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
AS_IMPORTED = """
class Interrupting:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
"""
IN_A_CALLBACK = """
import weakref
class Thing: pass
def load():
    thing = Thing()
    reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
    del thing
    for _ in range(600): time.sleep(0.1)
"""
AS_ANOTHER_ERROR = """
def load():
    try: os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error: raise ImportError("cannot import") from error
"""
FIT = ["topwork_trainer", "fit", "photos", "--model", "m", "--repository", "r"]


def interrupted(code: str, arguments: Sequence[object]) -> tuple[int, str]:
    """Run Python code that interrupts itself; return exit status and standard error."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTIBLE + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stderr


def is_importing(pid: int) -> bool:
    """Return True once a process has loaded NumPy, which a worker imports early."""
    return "numpy" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("click", ["topwork", "models"]),
        ("grpc", ["topwork", "models"]),
        ("topwork.cli.serve", ["topwork", "serve", "--repository", "r"]),
        ("topwork.rpc.server", ["topwork", "serve", "--repository", "r"]),
        ("click", FIT),
        ("topwork_trainer.cli.fit", FIT),
        ("topwork_trainer.fit.fit", FIT),
    ],
)
def test_an_interrupted_import_ends_the_command(
    module: str, arguments: Sequence[str], tmp_path: Path
) -> None:
    """SIGINT while a module is imported: exit status 130, and nothing on standard error."""
    package, *others = arguments
    code = AS_IMPORTED.format(module=module) + f"from {package}.cli import main; main()"
    assert interrupted(code, [tmp_path / word if word == "r" else word for word in others]) == (
        STATUS,
        "",
    )


@pytest.mark.parametrize("code", [IN_A_CALLBACK, AS_ANOTHER_ERROR])
def test_an_interrupt_hidden_by_an_import_ends_the_command(code: str) -> None:
    """The command also ends if Python drops the exception or a library replaces it."""
    code += "import time; from topwork.runtime.interrupts import interruptible\n"
    code += "with interruptible(): load()"
    assert interrupted(code, []) == (STATUS, "")


def test_an_error_without_an_interrupt_stays_an_error() -> None:
    """An error without an interrupt has its traceback."""
    code = "from topwork.runtime.interrupts import interruptible\nwith interruptible(): 1 / 0"
    status, errors = interrupted(code, [])
    assert (status, "ZeroDivisionError" in errors) == (1, True)


def test_an_ignored_interrupt_stays_ignored() -> None:
    """A shell's background job is not ended by Ctrl-C."""
    code = (
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from topwork.runtime.interrupts import interruptible\n"
        "with interruptible(): os.kill(os.getpid(), signal.SIGINT)"
    )
    assert interrupted(code, []) == (0, "")


def test_ctrl_c_while_the_worker_imports_prints_no_traceback(tmp_path: Path) -> None:
    """SIGINT that reaches the worker during its imports prints no traceback."""
    code = INTERRUPTIBLE + "from topwork.cli import main; main()"
    command = [sys.executable, "-c", code, *servers.command(tmp_path / "repository")[3:]]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        servers.eventually(lambda: [*filter(is_importing, servers.workers_of(process.pid))])
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    assert process.returncode == 0
