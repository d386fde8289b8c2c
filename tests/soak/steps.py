"""The named steps of server and worker at which the killer strikes, and how they die there."""

from __future__ import annotations

import functools
import inspect
import multiprocessing
import os
import signal
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from support.servers import wrap

Process = Literal["server", "worker"]

ARMED = "TOPWORK_SOAK_ARMED"
"""The variable that names the file in which the killer writes where to die next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A moment in a process: right before or after a call."""

    name: str
    process: Process
    where: str
    """As ``pkgutil.resolve_name`` takes it: module:class.method."""
    before: bool = False
    argument: str = ""
    """Only calls with this among their arguments, or as the name of one, if it is not empty."""
    at_start: bool = False
    """It comes when the process starts, and only then."""


_STORE = "topwork.bundle.store:Repository"
_WORKER = "topwork.changes.worker"
_OPERATIONS = "topwork.changes.operations"
_QUEUE = "topwork.changes.queue"
_REGISTRY = "topwork.serving.registry:Registry"
_WRITTEN = "topwork.bundle.files:_write_synced"

STEPS = (
    # Of the server, in the order in which it starts, takes a change, and serves what came of it.
    Step(name="starts", process="server", where=f"{_QUEUE}:connect", at_start=True),
    Step(
        name="worker spawned",
        process="server",
        where="topwork.runtime.supervisor:Supervisor._spawn",
        at_start=True,
    ),
    Step(name="image half stored", process="server", where=_WRITTEN),
    Step(name="image stored", process="server", where=f"{_STORE}.put_image"),
    Step(
        name="upload stored, not yet queued",
        process="server",
        where=f"{_OPERATIONS}:Operations.submit",
        before=True,
    ),
    Step(
        name="queued, not acknowledged",
        process="server",
        where=f"{_QUEUE}:DBOSClient.enqueue_async",
    ),
    Step(name="cancelled", process="server", where=f"{_OPERATIONS}:Operations.cancel"),
    Step(name="rollback decided", process="server", where=f"{_STORE}.set_serving", before=True),
    Step(name="rolled back", process="server", where=f"{_STORE}.set_serving"),
    Step(name="new revision seen", process="server", where=f"{_REGISTRY}._read_serving"),
    Step(name="new head loaded", process="server", where=f"{_REGISTRY}._load_head"),
    # Of the worker, in the order in which it starts and makes a change.
    Step(name="name claimed", process="worker", where=f"{_WORKER}:claim", at_start=True),
    Step(
        name="own operations put back",
        process="worker",
        where="topwork.changes.executors:Takeover.recover",
        at_start=True,
    ),
    Step(name="ready", process="worker", where=f"{_WORKER}:DBOS.launch", at_start=True),
    Step(name="embedding begins", process="worker", where=f"{_WORKER}:Trainer.embed", before=True),
    Step(name="image read", process="worker", where=f"{_STORE}.image"),
    Step(name="file half written", process="worker", where=_WRITTEN),
    Step(name="shard stored", process="worker", where=f"{_STORE}.put_shard"),
    Step(name="embedding ends", process="worker", where=f"{_WORKER}:Trainer.embed"),
    Step(name="solving begins", process="worker", where=f"{_WORKER}:Trainer.solve", before=True),
    Step(name="solved", process="worker", where="topwork.changes.retrain:learn"),
    Step(name="revision half published", process="worker", where=f"{_STORE}._refresh_references"),
    Step(name="revision published", process="worker", where=f"{_STORE}.publish"),
    Step(name="solving ends", process="worker", where=f"{_WORKER}:Trainer.solve"),
    Step(
        name="result noted",
        process="worker",
        where=f"{_WORKER}:DBOS.set_event",
        argument="result",
    ),
    Step(
        name="pointer about to move", process="worker", where=f"{_STORE}.set_serving", before=True
    ),
    Step(name="pointer moved", process="worker", where=f"{_STORE}.set_serving"),
    Step(
        name="result known, not stored",
        process="worker",
        where=f"{_WORKER}:ChangeOutcome",
        argument="result",
    ),
    Step(
        name="failure known, not stored",
        process="worker",
        where=f"{_WORKER}:ChangeOutcome",
        argument="failure",
    ),
)


def arm(armed: Path, step: Step, *, both: bool) -> None:
    """Let the process of ``step`` die there the next time, and with ``both`` the other one, too."""
    written = armed.with_suffix(".new")
    written.write_text(f"{step.process} {step.name}\n{'both' if both else ''}")
    written.replace(armed)


def arrange(process: Process) -> None:
    """Let this process, which is that one, die where it is told to, if it is ever told."""
    armed = Path(os.environ[ARMED])
    own: dict[str, list[Step]] = {}
    for step in STEPS:
        if step.process == process:
            own.setdefault(step.where, []).append(step)
    for where, steps in own.items():
        wrap(where, functools.partial(_mortal, steps=steps, armed=armed))


def _mortal(call: Callable[..., Any], steps: Sequence[Step], armed: Path) -> Callable[..., Any]:
    def reached(arguments: Collection[Any], *, before: bool) -> None:
        for step in steps:
            if step.before == before and (not step.argument or step.argument in arguments):
                _die_if_told(armed, step)

    @functools.wraps(call)
    def called(*args: Any, **kwargs: Any) -> Any:
        reached([*args, *kwargs], before=True)
        result = call(*args, **kwargs)
        reached([*args, *kwargs], before=False)
        return result

    @functools.wraps(call)
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        reached([*args, *kwargs], before=True)
        result = await call(*args, **kwargs)
        reached([*args, *kwargs], before=False)
        return result

    return awaited if inspect.iscoroutinefunction(call) else called


def _die_if_told(armed: Path, step: Step) -> None:
    try:
        told, _, both = armed.read_text().partition("\n")
        if told != f"{step.process} {step.name}":
            return
        armed.unlink()  # one process dies of it, once
    except FileNotFoundError:
        return
    if both and step.process == "worker":
        os.kill(os.getppid(), signal.SIGKILL)
    elif both:
        for child in multiprocessing.active_children():
            child.kill()
    os.kill(os.getpid(), signal.SIGKILL)
