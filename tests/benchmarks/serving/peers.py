"""Other servers from PyPI, each in its own environment, with the same model."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np

import topwork
from benchmarks.serving import client
from benchmarks.serving.client import Endpoint
from benchmarks.serving.http2 import Failed
from benchmarks.serving.processes import free_port, kill

PROGRAMS = Path(__file__).parents[1] / "peers"
SAME = ("onnxruntime", "pillow", "simplejpeg", "numpy")
"""Packages with the same version in all environments, since they determine the speed."""
INSTALL_SECONDS = 600
START_SECONDS = 60

Top5 = list[list[float]]
"""[class index, probability], the most probable first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A server, and the encoding of its requests."""

    name: str
    package: str
    program: str
    """File in PROGRAMS; called with the model's directory, a port and the number of cores."""
    path: str
    also: tuple[str, ...] = ()
    """Other packages to install with it."""
    encode: Callable[[bytes], bytes] = bytes
    """JPEG -> body of a request."""
    transport: Literal["grpc", "http"] = "http"
    content_type: str = "image/jpeg"


class NotMeasured(Exception):
    """A peer cannot be installed or answers wrongly; the text has the reason."""


def _inference_request(photo: bytes) -> bytes:
    """Return an encoded ModelInferRequest of the Open Inference Protocol with one BYTES element."""
    tensor = _field(1, b"photo") + _field(2, b"BYTES") + _field(3, b"\x01\x01")
    return _field(1, b"photos") + _field(5, tensor + _field(5, _field(8, photo)))


def _field(number: int, content: bytes) -> bytes:
    """Return a protobuf field of bytes: tag, length as a varint, content."""
    length, varint = len(content), bytearray()
    while length > 127:
        varint.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2, *varint, length]) + content


PEERS = (
    Peer(
        name="grpc.aio",
        package="grpcio",
        program="grpc_aio.py",
        path="/Peer/Classify",
        transport="grpc",
    ),
    Peer(
        name="naive grpcio",
        package="grpcio",
        program="grpc_threads.py",
        path="/Peer/Classify",
        transport="grpc",
    ),
    Peer(name="mosec", package="mosec", program="with_mosec.py", path="/inference"),
    Peer(
        name="MLServer",
        package="mlserver",
        also=("uvloop<0.22",),  # 1.7.1 cannot start its workers with a later version
        program="with_mlserver.py",
        path="/inference.GRPCInferenceService/ModelInfer",
        encode=_inference_request,
        transport="grpc",
    ),
    Peer(
        name="LitServe",
        package="litserve",
        program="with_litserve.py",
        path="/predict",
        encode=lambda photo: json.dumps({"photo": base64.b64encode(photo).decode()}).encode(),
        content_type="application/json",
    ),
    Peer(name="BentoML", package="bentoml", program="with_bentoml.py", path="/classify"),
)


def install(peer: Peer, root: Path) -> Path:
    """Return the Python of the peer's environment below ``root``; create it if needed.

    Raises NotMeasured.
    """
    environment = root / peer.package
    python = environment / "bin" / "python"
    if (environment / "complete").exists():
        return python
    wanted = [
        peer.package,
        *peer.also,
        *(f"{name}=={version}" for name, version in _versions().items()),
    ]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        subprocess.run(pip, check=True, timeout=INSTALL_SECONDS, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or "").strip().splitlines()[-1:] or [str(error)]
        raise NotMeasured(f"{peer.name}: {reason[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise NotMeasured(f"{peer.name}: {error}") from error
    (environment / "complete").touch()
    return python


@contextlib.contextmanager
def running(
    peer: Peer, python: Path, model: Path, photo: bytes, log: Path, *, cores: int
) -> Iterator[tuple[Endpoint, int]]:
    """Run a peer while the block runs; yield its endpoint and process id.

    Raises NotMeasured if it gives no answer to ``photo`` within START_SECONDS.
    """
    port = free_port()
    command = [python, PROGRAMS / peer.program, model, port, cores]
    ours = [PROGRAMS.parents[1], Path(topwork.__file__).parents[1]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, ours))}
    endpoint = Endpoint(
        address=f"127.0.0.1:{port}",
        path=peer.path,
        transport=peer.transport,
        content_type=peer.content_type,
    )
    with (
        log.open("w") as file,
        subprocess.Popen(
            list(map(str, command)),
            stdout=file,
            stderr=file,
            env=environment,
            cwd=log.parent,
        ) as process,
    ):
        try:
            _wait(peer, endpoint, photo, process, log)
            yield endpoint, process.pid
        finally:
            kill(process.pid)  # some leave workers running if only the parent is killed


def check(peer: Peer, endpoint: Endpoint, bodies: Sequence[bytes], wanted: Sequence[Top5]) -> None:
    """Raise NotMeasured unless the peer's answers equal the bare model's."""

    async def ask() -> list[Top5]:
        async with client.connected(endpoint, 1) as (call,):
            return [top5(await call(body)) for body in bodies]

    for number, (answer, right) in enumerate(zip(client.run(ask()), wanted, strict=True)):
        if not np.allclose(answer, right, atol=1e-3):
            raise NotMeasured(f"{peer.name} gives {answer} for photo {number}, not {right}")


def top5(answer: bytes) -> Top5:
    """Return the [class index, probability] pairs in a framework's response."""
    pairs: Top5 = json.loads(answer[answer.index(b"[[") : answer.rindex(b"]]") + 2])
    return pairs


def _wait(
    peer: Peer, endpoint: Endpoint, photo: bytes, process: subprocess.Popen[bytes], log: Path
) -> None:
    async def ask() -> None:
        async with client.connected(endpoint, 1) as (call,), asyncio.timeout(5):
            top5(await call(peer.encode(photo)))

    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return client.run(ask())
        except (OSError, EOFError, RuntimeError, ValueError, Failed) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                text = log.read_text()[-2000:]
                raise NotMeasured(f"{peer.name} does not answer: {error}\n{text}") from error
        time.sleep(0.2)


def _versions() -> dict[str, str]:
    versions = {}
    for name in SAME:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
