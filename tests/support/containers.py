"""Containers of an image, run by docker or podman, or by chroot if only buildah is installed.

All are hardened: an unprivileged user, no capabilities, a read-only root file system. They use the
host's network.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from support import servers
from support.servers import Running

USER = 10001
"""User id in the image."""

Result = tuple[int, str]
"""Exit status, and output of both streams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """Arguments, user, environment and volumes of a container."""

    arguments: Sequence[str] = ()
    user: int = USER
    environment: Mapping[str, str] = field(default_factory=dict)
    volumes: Mapping[Path, str] = field(default_factory=dict)


class Engine(Protocol):
    """Runs containers of one image."""

    def config(self) -> dict[str, Any]:
        """Return the image's configuration in docker's format."""

    def bytes_above(self, base: str) -> int:
        """Return the size of the image minus that of ``base``."""

    def command(self, name: str, spec: Spec) -> list[str]:
        """Return a command that runs a container in the foreground and exits with its status."""

    def inside(self, running: Running, name: str, spec: Spec, command: Sequence[str]) -> Result:
        """Run another command in a running container."""

    def terminate(self, running: Running, name: str) -> None:
        """Send SIGTERM to a container's process 1."""

    def remove(self, running: Running, name: str) -> None:
        """Kill and remove a container."""


class Container:
    """A running container."""

    def __init__(self, engine: Engine, name: str, spec: Spec) -> None:
        self._engine = engine
        self._name = name
        self._spec = spec
        repository = next(
            (path for path, at in spec.volumes.items() if at == "/repository"), Path()
        )
        self.running = Running(engine.command(name, spec), repository)

    def inside(self, *command: str) -> Result:
        """Run a command in the container; return its exit status and output."""
        return self._engine.inside(self.running, self._name, self._spec, command)

    def stop(self) -> int:
        """Send SIGTERM; return the container's exit status."""
        self._engine.terminate(self.running, self._name)
        return self.running.process.wait(servers.TIMEOUT)

    def close(self) -> None:
        """Kill and remove the container."""
        self._engine.remove(self.running, self._name)
        self.running.close()


_numbers = itertools.count(1)


@contextlib.contextmanager
def container(engine: Engine, spec: Spec) -> Iterator[Container]:
    """Run a container while the block runs."""
    name = f"topwork-test-{os.getpid()}-{next(_numbers)}"
    started = Container(engine, name, spec)
    try:
        yield started
    finally:
        started.close()


class Cli:
    """docker, podman or another engine with the same arguments."""

    def __init__(self, command: Sequence[str], image: str) -> None:
        self._command = command
        self._image = image

    def config(self) -> dict[str, Any]:
        """See Engine."""
        inspected = self._inspect(self._image)
        config: dict[str, Any] = inspected["Config"]
        # podman stores the health check outside of Config.
        return (
            {"Healthcheck": inspected["Healthcheck"]} | config
            if "Healthcheck" in inspected
            else config
        )

    def bytes_above(self, base: str) -> int:
        """See Engine."""
        return int(self._inspect(self._image)["Size"]) - int(self._inspect(base)["Size"])

    def command(self, name: str, spec: Spec) -> list[str]:
        """See Engine."""
        options = [f"--env={key}={value}" for key, value in spec.environment.items()]
        options += [f"--volume={path}:{at}" for path, at in spec.volumes.items()]
        hardened = (
            "--network=host", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL",
            "--security-opt=no-new-privileges", f"--user={spec.user}:0",
        )  # fmt: skip
        return [
            *(*self._command, "run", "--name", name, *hardened, *options),
            *(self._image, *spec.arguments),
        ]

    def inside(self, running: Running, name: str, spec: Spec, command: Sequence[str]) -> Result:
        """See Engine."""
        del running, spec
        return _done([*self._command, "exec", name, *command])

    def terminate(self, running: Running, name: str) -> None:
        """See Engine."""
        del running
        subprocess.run([*self._command, "kill", "--signal=TERM", name], check=True)

    def remove(self, running: Running, name: str) -> None:
        """See Engine."""
        del running
        subprocess.run([*self._command, "rm", "--force", name], capture_output=True, check=False)

    def _inspect(self, image: str) -> dict[str, Any]:
        done = subprocess.run(
            [*self._command, "image", "inspect", image], capture_output=True, text=True, check=True
        )
        inspected: dict[str, Any] = json.loads(done.stdout)[0]
        return inspected


class Chroot:
    """Images built by buildah, run by util-linux in a chroot with PID and mount namespaces.

    For hosts on which no engine can run containers; needs root. Unlike an engine it has no seccomp
    filter and no limit on memory or CPU.
    """

    def __init__(self, image: str) -> None:
        self._image = image

    def config(self) -> dict[str, Any]:
        """See Engine."""
        inspected = _buildah("inspect", "--type=image", self._image)
        config: dict[str, Any] = json.loads(inspected)["Docker"]["config"]
        return config

    def bytes_above(self, base: str) -> int:
        """See Engine."""
        return self._bytes(self._image) - self._bytes(base)

    def command(self, name: str, spec: Spec) -> list[str]:
        """See Engine."""
        _buildah("from", "--pull-never", "--name", name, self._image)
        root = _buildah("mount", name)
        binds = [(str(path), root + at) for path, at in spec.volumes.items()]
        mounts = [
            ["mount", "--bind", root, root],
            ["mount", "-t", "proc", "proc", f"{root}/proc"],
            ["mount", "-t", "tmpfs", "tmpfs", f"{root}/tmp"],
            ["mount", "--rbind", "/dev", f"{root}/dev"],
            ["mount", "--rbind", "/sys", f"{root}/sys"],
            *(["mkdir", "-p", at] for _, at in binds),
            *(["mount", "--bind", path, at] for path, at in binds),
            ["mount", "-o", "remount,bind,ro", root],
        ]
        config = self.config()
        run = [*config["Entrypoint"], *(spec.arguments or config["Cmd"])]
        script = " && ".join(map(shlex.join, [*mounts, ["exec", *self._confined(root, spec, run)]]))
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]

    def inside(self, running: Running, name: str, spec: Spec, command: Sequence[str]) -> Result:
        """See Engine."""
        root = _buildah("mount", name)
        confined = self._confined(root, spec, command)
        return _done(["nsenter", f"--target={self._first(running)}", "--mount", "--pid", *confined])

    def terminate(self, running: Running, name: str) -> None:
        """See Engine."""
        del name
        subprocess.run(["kill", "-TERM", str(self._first(running))], check=True)

    def remove(self, running: Running, name: str) -> None:
        """See Engine."""
        if running.process.poll() is None:  # the kernel ends the namespace with its process 1
            subprocess.run(["kill", "-KILL", str(self._first(running))], check=True)
            running.process.wait(servers.TIMEOUT)
        _buildah("umount", name)
        _buildah("rm", name)

    def _confined(self, root: str, spec: Spec, command: Sequence[str]) -> list[str]:
        variables = [*self.config()["Env"], *(f"{k}={v}" for k, v in spec.environment.items())]
        user = (f"--reuid={spec.user}", "--regid=0", "--clear-groups")
        return [
            *("chroot", root, "/usr/bin/env", "-i", *variables),
            *("setpriv", *user, "--no-new-privs", "--bounding-set=-all", *command),
        ]

    def _first(self, running: Running) -> int:
        """Return the host's id of the container's process 1."""

        def child() -> int | None:
            pid = running.process.pid
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return int(children[0]) if children else None

        return servers.eventually(child)

    def _bytes(self, image: str) -> int:
        name = _buildah("from", "--pull-never", image)
        try:
            root = Path(_buildah("mount", name))
            files = (path.lstat() for path in root.rglob("*"))
            # Hard links count once.
            return sum({stat.st_ino: stat.st_size for stat in files}.values())
        finally:
            _buildah("rm", name)


def engine(command: str, image: str) -> Engine:
    """Return the engine for containers of ``image``, which ``command`` built."""
    words = shlex.split(command)
    return Chroot(image) if words == ["buildah"] else Cli(words, image)


def _buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _done(command: Sequence[str]) -> Result:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout
