"""Benchmark of the HTTP gateway: what it adds to a Classify call of one photo.

    PYTHONPATH=tests python -m benchmarks.gateway REPOSITORY MODEL PHOTO [--turns 5]

The photo is scaled to some 15 KB. One caller asks by gRPC, by a form with a file, and by JSON, in
turns. Prints the processor time of the gateway a call, and that of the server itself.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from support import servers

from benchmarks.serving.processes import Processes, cpu_seconds
from topwork import Client

CALLS = 200
BOUNDARY = "photo"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("repository", type=Path)
    parser.add_argument("model")
    parser.add_argument("photo", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    photo = _small(given.photo)
    found: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    with (
        servers.running(
            given.repository, http_port="127.0.0.1:0", worker=False, forked=False
        ) as server,
        Client(server.address) as client,
    ):
        gateway, processes = server.gateway(), Processes(server.process.pid)
        ways = {
            "gRPC": lambda: client.classify(given.model, [photo]),
            "HTTP, form with a file": _form(server.http, given.model, photo),
            "HTTP, JSON": _json(server.http, given.model, photo),
        }
        for turn in range(given.turns + 1):  # the first warms up
            for name, call in ways.items():
                before = cpu_seconds(gateway), processes.cpu_seconds()
                for _ in range(CALLS):
                    call()
                own = cpu_seconds(gateway) - before[0]
                others = processes.cpu_seconds() - before[1] - own
                if turn:
                    found[name].append((own / CALLS * 1e3, others / CALLS * 1e3))
    print("| | gateway, ms | server, ms |\n| --- | --- | --- |")
    for name, rows in found.items():
        own, others = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"| {name} | {own:.2f} | {others:.2f} |")


def _small(path: Path) -> bytes:
    image = Image.open(path).convert("RGB")
    image.thumbnail((320, 320))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return encoded.getvalue()


def _form(address: str, model: str, photo: bytes) -> Callable[[], None]:
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = head.encode() + photo + f"\r\n--{BOUNDARY}--\r\n".encode()
    return _posting(address, model, body, f"multipart/form-data; boundary={BOUNDARY}")


def _json(address: str, model: str, photo: bytes) -> Callable[[], None]:
    body = json.dumps({"images": [base64.b64encode(photo).decode()]}).encode()
    return _posting(address, model, body, "application/json")


def _posting(address: str, model: str, body: bytes, content_type: str) -> Callable[[], None]:
    connection = http.client.HTTPConnection(address)

    def post() -> None:
        path = f"/v1/models/{model}:classify"
        connection.request("POST", path, body, {"Content-Type": content_type})
        response = connection.getresponse()
        content = response.read()
        if response.status != http.client.OK:
            raise RuntimeError(content.decode(errors="replace"))

    return post


if __name__ == "__main__":
    main()
