"""Process-wide settings, observed in new interpreters."""

from __future__ import annotations

import json
import os
import pkgutil
import resource
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import pytest

import topwork
import topwork.cli
import topwork_trainer.cli
from topwork.changes import worker
from topwork.config import WorkerConfig
from topwork.runtime import process

VARIABLES = ("ORT_DISABLE_TELEMETRY", "PILLOW_BLOCK_SIZE", "PILLOW_BLOCKS_MAX")

LOOK = """
import importlib, json, os, resource, signal, sys, warnings

def look():
    import PIL.Image, threadpoolctl

    return {
        "environment": dict(os.environ),
        "warnings": [repr(entry) for entry in warnings.filters],
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "signals": [str(signal.getsignal(number)) for number in signal.valid_signals()],
        "hooks": [repr(hook) for hook in (sys.excepthook, sys.unraisablehook)],
        "threads": [pool["num_threads"] for pool in threadpoolctl.threadpool_info()],
        "pillow": [PIL.Image.core.get_block_size(), PIL.Image.core.get_blocks_max()],
        "pixels": PIL.Image.MAX_IMAGE_PIXELS,
    }
"""


def run(code: str, *arguments: str, **variables: str) -> Any:
    """Return the JSON that a fresh interpreter prints, which has few files and may have more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", LOOK + code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**kept, **variables},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard)),
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_import_changes_no_process_setting() -> None:
    """The comparison is with the settings after the libraries are imported."""
    names = [
        module.name
        for module in pkgutil.walk_packages(topwork.__path__, "topwork.")
        if not module.name.endswith("__main__")
    ]
    modules = run(
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(json.dumps([name for name in sys.modules if not name.startswith('topwork')]))",
        *names,
    )
    before, after = run(
        "import contextlib\n"
        "others, own = map(json.loads, sys.argv[1:])\n"
        "for name in others:\n"
        "    with contextlib.suppress(Exception): importlib.import_module(name)\n"
        "before = look()\n"
        "for name in own: importlib.import_module(name)\n"
        "print(json.dumps([before, look()]))",
        json.dumps(modules),
        json.dumps(names),
    )
    assert after == before


def test_configure_changes_the_settings() -> None:
    """Pillow caches memory, damaged files cause no warning, and the file limit is the hard one."""
    found = run(
        "from topwork.runtime import process\nprocess.configure()\nprint(json.dumps(look()))"
    )
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert found["files"] == [hard, hard]
    assert found["pillow"] == [4 * 2**20, 32]
    assert found["environment"]["ORT_DISABLE_TELEMETRY"] == "1"
    assert {"PIL", "pydicom"} <= {
        name for name in ("PIL", "pydicom") for entry in found["warnings"] if name in entry
    }


def test_configure_keeps_environment_variables() -> None:
    """Variables that are already set are not changed."""
    found = run(
        "from topwork.runtime import process\nprocess.configure()\nprint(json.dumps(look()))",
        PILLOW_BLOCKS_MAX="7",
        ORT_DISABLE_TELEMETRY="0",
    )
    assert found["pillow"] == [4 * 2**20, 7]
    assert found["environment"]["ORT_DISABLE_TELEMETRY"] == "0"


@pytest.mark.parametrize(
    "enter",
    [
        topwork.cli.main,
        topwork_trainer.cli.main,
        lambda: worker.run(cast("Connection", None), WorkerConfig(repository=Path("r"))),
    ],
)
def test_entry_point_configures_the_process_first(
    enter: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both command lines do, and the worker process of a server."""

    class Configured(Exception):
        pass

    def configure() -> None:
        raise Configured

    monkeypatch.setattr(process, "configure", configure)
    with pytest.raises(Configured):
        enter()


@pytest.mark.skipif(sys.platform != "linux", reason="SCHED_IDLE is of Linux")
@pytest.mark.parametrize(
    ("priority", "allowed", "expected"),
    [("idle", True, [True, 19]), ("idle", False, [False, 19]), ("normal", True, [False, 0])],
)
def test_priority_holds_for_later_threads(
    priority: str, allowed: bool, expected: list[object]
) -> None:
    """Idle threads get SCHED_IDLE, and the highest niceness in case it is not allowed."""
    code = """
import os, threading
from topwork.runtime import process

def forbid(*_):
    raise PermissionError

if sys.argv[1] == "False":
    os.sched_setscheduler = forbid
process.set_priority(sys.argv[2])
found = []
thread = threading.Thread(target=lambda: found.extend(
    [os.sched_getscheduler(0) == os.SCHED_IDLE, os.getpriority(os.PRIO_PROCESS, 0)]
))
thread.start()
thread.join()
print(json.dumps(found))
"""
    assert run(code, str(allowed), priority) == expected
