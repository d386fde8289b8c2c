"""Rate at which a server makes models over the wire, and the time until they serve.

``PYTHONPATH=tests python -m benchmarks.new_models``, with a tiny backbone, so that it measures
Topwork and the disk. Every head is compared with that of a fit on the same photos, byte for byte.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support import servers, tiny
from support.pictures import picture

from topwork import Client
from topwork.bundle.store import Repository
from topwork.v1 import change_pb2 as change_pb

LABELS = ("amber", "blue")
PHOTOS = 6
CALLERS = 4
ANY = change_pb.ChangeOptions(gate=change_pb.Gate(max_old_class_drop=1.0, min_new_class_recall=0.0))


def photos(number: int) -> dict[str, list[bytes]]:
    """Return the photos of the model with a number: no two models have the same."""
    first = number * PHOTOS
    return {label: [picture(label, n) for n in range(first, first + PHOTOS)] for label in LABELS}


def fitted(number: int) -> bytes:
    """Return the head of a fit on a model's photos."""
    with tempfile.TemporaryDirectory() as directory:
        made = Repository(Path(directory))
        return made.head(tiny.publish(made, "m", tiny.embed_pictures(photos(number))))


def head(repository: Repository, model: str) -> bytes:
    """Return the serving head of a model."""
    return repository.head(repository.manifest(model, repository.serving(model)))


def rate(calls: Sequence[Callable[[], object]], callers: int) -> float:
    """Return the calls per second with a number of concurrent callers."""
    start = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result()
    return len(calls) / (time.perf_counter() - start)


def learn(client: Client, model: str, number: int) -> float:
    """Add both labels to a model; return the seconds until it serves."""
    start = time.perf_counter()
    for label, contents in photos(number).items():
        images = [(f"{label}-{place}", content) for place, content in enumerate(contents)]
        *_, last = client.watch(client.add_class(model, label, images, options=ANY).name)
        last.result()
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000, help="models of each kind")
    parser.add_argument("--learnt", type=int, default=20, help="models that get their own labels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        repository = Repository(Path(directory) / "repository")
        model = tiny.backbone_model()
        repository.put_backbone(model, tiny.backbone_info(model))
        with (
            servers.running(repository.root, forked=False) as server,
            Client(server.address) as client,
        ):
            recipe = {"head": "logistic", "normalisation": "sqrt_l2"}
            names = [f"learnt-{number}" for number in range(options.learnt)]
            for name in names:
                client.create_model(name, **recipe)  # type: ignore[arg-type]  # its text fields
            alone = learn(client, names[0], 0)
            start = time.perf_counter()
            with ThreadPoolExecutor(CALLERS) as pool:
                learning = [
                    pool.submit(learn, client, name, number)
                    for number, name in enumerate(names)
                    if number
                ]
                for done in learning:
                    done.result()
            learnt = (options.learnt - 1) / (time.perf_counter() - start)
            rows = []
            for callers in (1, CALLERS):
                created = [
                    lambda number=number, callers=callers: client.create_model(
                        f"created-{callers}-{number}"
                    )
                    for number in range(options.models)
                ]
                copied = [
                    lambda number=number, callers=callers: client.copy_model(
                        names[number % len(names)], f"copied-{callers}-{number}"
                    )
                    for number in range(options.models)
                ]
                rows.append((callers, rate(created, callers), rate(copied, callers)))
        fits = [fitted(number) for number in range(options.learnt)]
        for number, name in enumerate(names):
            assert head(repository, name) == fits[number], name
        for callers in (1, CALLERS):
            for number in range(options.models):
                name = f"copied-{callers}-{number}"
                assert head(repository, name) == fits[number % len(fits)], name
    print("| callers | CreateModel a second | CopyModel a second |")
    print("| --- | --- | --- |")
    for callers, create_rate, copy_rate in rows:
        print(f"| {callers} | {create_rate:.0f} | {copy_rate:.0f} |")
    print(f"\ntwo labels until a model serves: {alone:.2f} s, one at a time")
    print(f"{CALLERS} callers: {learnt:.2f} models a second get both labels and serve")
    print(f"{len(names)} learnt and {2 * options.models} copied heads equal those of fits")


if __name__ == "__main__":
    main()
