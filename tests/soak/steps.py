"""Named steps at which server and worker can be killed, and the hooks that kill them there."""

from __future__ import annotations

import functools
import inspect
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from support.deaths import wrap

Process = Literal["server", "worker"]

ARMED = "TOPWORK_SOAK_ARMED"
"""Environment variable with the path of the file that names the next step to die at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A moment in a process, right before or after a call."""

    name: str
    process: Process
    target: str
    """Function in the form of ``pkgutil.resolve_name``: module:class.method."""
    before: bool = False
    argument: str = ""
    """If not empty, only calls with an argument of this value or this name."""
    at_start: bool = False
    """True if the step is only reached when the process starts."""

    def is_in(self, *, bucket: bool) -> bool:
        """Return True if it is reached with a repository in a bucket, or in files."""
        return self.target != (_WRITTEN if bucket else _PUT)


_STORE = "topwork.bundle.store:Repository"
_WORKER = "topwork.changes.worker"
_OPERATIONS = "topwork.changes.operations"
_QUEUE = "topwork.changes.queue"
_LIFECYCLE = "topwork.changes.lifecycle"
_REGISTRY = "topwork.serving.registry:Registry"
_WRITTEN = "topwork.storage.files:_write_synced"
_PUT = "topwork.storage.bucket.objects:Objects.put"

STEPS = (
    # Server, in the order of start, accepting a change, and serving its revision.
    Step(name="starts", process="server", target=f"{_QUEUE}:connect", at_start=True),
    Step(
        name="worker spawned",
        process="server",
        target="topwork.runtime.supervisor:Supervisor._spawn",
        at_start=True,
    ),
    Step(name="image half stored", process="server", target=_WRITTEN),
    Step(name="object written", process="server", target=_PUT),
    Step(name="image stored", process="server", target=f"{_STORE}.put_image"),
    Step(
        name="upload stored, not yet queued",
        process="server",
        target=f"{_OPERATIONS}:Operations.submit",
        before=True,
    ),
    Step(
        name="queued, not acknowledged",
        process="server",
        target=f"{_QUEUE}:DBOSClient.enqueue_async",
    ),
    Step(name="cancelled", process="server", target=f"{_OPERATIONS}:Operations.cancel"),
    Step(name="rollback decided", process="server", target=f"{_STORE}.set_serving", before=True),
    Step(name="rolled back", process="server", target=f"{_STORE}.set_serving"),
    Step(name="model created", process="server", target=f"{_LIFECYCLE}:Lifecycle.create"),
    Step(name="copy read", process="server", target=f"{_LIFECYCLE}:_copied_files"),
    Step(name="model copied", process="server", target=f"{_LIFECYCLE}:Lifecycle.copy"),
    Step(name="model deleted", process="server", target=f"{_LIFECYCLE}:Lifecycle.delete"),
    Step(name="model undeleted", process="server", target=f"{_LIFECYCLE}:Lifecycle.undelete"),
    Step(name="new revision seen", process="server", target=f"{_REGISTRY}._read_current"),
    Step(name="new head loaded", process="server", target=f"{_REGISTRY}._load_head"),
    # Worker, in the order of start and of a change.
    Step(name="name claimed", process="worker", target=f"{_WORKER}:claim", at_start=True),
    Step(
        name="own operations put back",
        process="worker",
        target="topwork.changes.executors:Takeover.recover",
        at_start=True,
    ),
    Step(name="ready", process="worker", target=f"{_WORKER}:DBOS.launch", at_start=True),
    Step(name="embedding begins", process="worker", target=f"{_WORKER}:Trainer.embed", before=True),
    Step(name="image read", process="worker", target=f"{_STORE}.image"),
    Step(name="file half written", process="worker", target=_WRITTEN),
    Step(name="object written", process="worker", target=_PUT),
    Step(name="shard stored", process="worker", target=f"{_STORE}.put_shard"),
    Step(name="embedding ends", process="worker", target=f"{_WORKER}:Trainer.embed"),
    Step(name="solving begins", process="worker", target=f"{_WORKER}:Trainer.solve", before=True),
    Step(name="solved", process="worker", target="topwork.changes.retrain:learn"),
    Step(name="revision half published", process="worker", target=f"{_STORE}._refresh_references"),
    Step(name="revision published", process="worker", target=f"{_STORE}.publish"),
    Step(name="solving ends", process="worker", target=f"{_WORKER}:Trainer.solve"),
    Step(
        name="result noted",
        process="worker",
        target=f"{_WORKER}:DBOS.set_event",
        argument="result",
    ),
    Step(
        name="pointer about to move", process="worker", target=f"{_STORE}.set_serving", before=True
    ),
    Step(name="pointer moved", process="worker", target=f"{_STORE}.set_serving"),
    Step(
        name="label about to be kept", process="worker", target=f"{_STORE}.set_draft", before=True
    ),
    Step(name="label kept", process="worker", target=f"{_STORE}.set_draft"),
    Step(
        name="result known, not stored",
        process="worker",
        target=f"{_WORKER}:ChangeOutcome",
        argument="result",
    ),
    Step(
        name="failure known, not stored",
        process="worker",
        target=f"{_WORKER}:ChangeOutcome",
        argument="failure",
    ),
)


def arm(armed: Path, step: Step, *, both: bool) -> None:
    """Make the process of ``step`` die there next time, with ``both`` also the other process."""
    fresh = armed.with_suffix(".new")
    fresh.write_text(f"{step.process} {step.name}\n{'both' if both else ''}")
    fresh.replace(armed)


def install(process: Process) -> None:
    """Install the hooks of all steps of this process."""
    armed = Path(os.environ[ARMED])
    own: dict[str, list[Step]] = {}
    bucket = any(argument.startswith("s3://") for argument in sys.argv)
    for step in STEPS:
        if step.process == process and step.is_in(bucket=bucket):
            own.setdefault(step.target, []).append(step)
    for target, steps in own.items():
        wrap(target, functools.partial(_hooked, steps=steps, armed=armed))


def _hooked(call: Callable[..., Any], steps: Sequence[Step], armed: Path) -> Callable[..., Any]:
    def reached(arguments: Collection[Any], *, before: bool) -> None:
        for step in steps:
            if step.before == before and (not step.argument or step.argument in arguments):
                _die_if_armed(armed, step)

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


def _die_if_armed(armed: Path, step: Step) -> None:
    try:
        next_step, _, both = armed.read_text().partition("\n")
        if next_step != f"{step.process} {step.name}":
            return
        armed.unlink()  # only one process dies, once
    except FileNotFoundError:
        return
    if both and step.process == "worker":
        os.kill(os.getppid(), signal.SIGKILL)
    elif both:
        for child in multiprocessing.active_children():
            child.kill()
    os.kill(os.getpid(), signal.SIGKILL)
