"""Rate of Classify for texts of 64 tokens, beside the ceiling of the machine.

    PYTHONPATH=tests python -m benchmarks.text_classify [--encoder FOLDER] [--precision int8|fp32]
        [--callers 32] [--rounds 3] [--seconds 5]

The ceiling is a bare loop in this process, a thread for each core: a text is cut into tokens and
embedded. It is measured right before and right after each load; the CPU share tells whether other
processes used the cores. The client, whose CPU is printed, runs on the same cores as the server. If
other processes use them, compare the texts for each CPU second: of server and client, and of the
loop.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.serving.client import Endpoint, Load, closed_loop
from benchmarks.serving.client import run as run_loop
from benchmarks.serving.processes import WORKER, Processes
from benchmarks.serving.workload import CLASSIFY, decode
from benchmarks.text_topics import PACKAGE, packaged_encoder, write
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork.inputs.text import TextSpec, prepare
from topwork.runtime.backend import Session, open_session
from topwork.runtime.cores import available_cores
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import input_pb2 as input_pb
from topwork_trainer.commands import run, serving

TOKENS = 64
TEXTS = 64
"""Number of texts that are sent repeatedly."""


def texts_of(spec: TextSpec, count: int, *, seed: int) -> list[str]:
    """Return texts of exactly TOKENS tokens: short words, each of which is a token."""
    random = np.random.default_rng(seed)
    found: list[str] = []
    words = [word for word in _WORDS.split() if len(prepare(word.encode(), spec)) == 3]
    while len(found) < count:
        text = " ".join(random.choice(words, TOKENS - 2))
        assert len(prepare(text.encode(), spec)) == TOKENS
        found.append(text)
    return found


_WORDS = """
time year people way day man thing woman life child world school state family student group country
problem hand part place case week company system program question work government number night
point home water room mother area money story fact month lot right study book eye job word business
issue side kind head house service friend father power hour game line
"""


class Ceiling:
    """Maximum rate of an encoder in this process."""

    def __init__(self, session: Session, spec: TextSpec, texts: Sequence[str]) -> None:
        self._session = session
        self._spec = spec
        self._texts = [text.encode() for text in texts]

    def rate(self, seconds: float) -> tuple[float, float]:
        """Return texts/s and the CPU share, below 1 if other processes used the cores."""
        cores = available_cores()
        cpu, begin = time.process_time(), time.perf_counter()

        def loop(offset: int) -> float:
            done, start = 0, time.perf_counter()
            while time.perf_counter() < begin + seconds:
                text = self._texts[(offset + done) % len(self._texts)]
                self._session.run(prepare(text, self._spec)[None])
                done += 1
            return done / (time.perf_counter() - start)

        with ThreadPoolExecutor(cores) as pool:
            rate = sum(pool.map(loop, range(cores)))
        return rate, (time.process_time() - cpu) / (time.perf_counter() - begin) / cores


def published(root: Path, encoder: Path, precision: str) -> tuple[Repository, BackboneInfo]:
    """Return a repository with a model ``topics`` of two labels, and its backbone."""
    repository = Repository(root / "repository")
    place = ("--repository", repository.root)
    run("topwork_trainer", "backbone", "add", "encoder", "--encoder", encoder, *place, "--json")
    spec = repository.backbone_info(repository.added_backbones()["encoder"]).preprocess
    assert isinstance(spec, TextSpec)
    topics = {f"topic-{seed}": texts_of(spec, 20, seed=seed) for seed in (1, 2)}
    fit = ("fit", write(root / "data", topics), "--model", "topics", "--backbone", "encoder")
    run("topwork_trainer", *fit, *place, "--precision", precision, "--no-cache", "--json")
    manifest = repository.manifest("topics", repository.serving("topics"))
    info = repository.backbone_info(manifest.backbone)
    assert info.precision == precision
    return repository, info


def load(address: str, pid: int, texts: Sequence[str], callers: int, seconds: float) -> Load:
    """Return the measurements of a closed loop of calls with one text each."""
    bodies = [
        classify_pb.ClassifyRequest(
            model="models/topics", inputs=[input_pb.Input(text=text)]
        ).SerializeToString()
        for text in texts
    ]
    processes = Processes(pid, without=WORKER)
    return run_loop(
        closed_loop(
            Endpoint(address=address, path=CLASSIFY), bodies, decode, callers=callers,
            seconds=seconds, server_cpu=processes.cpu_seconds,
        )
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a line for each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", type=Path, default=packaged_encoder())
    parser.add_argument("--precision", choices=["fp32", "int8"], default="int8")
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args(arguments)
    if given.encoder is None:
        parser.error(f"--encoder is needed: the package {PACKAGE} is not installed")
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        repository, info = published(root, given.encoder, given.precision)
        assert isinstance(info.preprocess, TextSpec)
        session = open_session(repository.backbone_model(info.digest), output="embedding")
        texts = texts_of(info.preprocess, TEXTS, seed=0)
        ceiling = Ceiling(session, info.preprocess, texts)
        ceiling.rate(1)
        ratios, costs = [], []
        with serving(repository.root, root / "log") as server:
            for _ in range(given.rounds):
                before, first = ceiling.rate(given.seconds)
                found = load(
                    server.address, server.process.pid, texts, given.callers, given.seconds
                )
                after, second = ceiling.rate(given.seconds)
                mean = (before + after) / 2
                ratios.append(found.calls_per_second / mean)
                spent = (found.server_cpu + found.client_cpu) / found.seconds
                bare = mean / (first + second) * 2 / available_cores()
                costs.append(found.calls_per_second / spent / bare)
                print(
                    f"{info.precision}: {found.calls_per_second:.1f} texts/s, ceiling "
                    f"{before:.1f} and {after:.1f} (CPU {first:.2f}, {second:.2f}), ratio "
                    f"{ratios[-1]:.3f}, for each CPU second {costs[-1]:.3f}; p50 "
                    f"{1e3 * statistics.median(found.latencies):.1f} ms; CPU "
                    f"of the server {found.server_cpu / found.seconds:.2f}, of the client "
                    f"{found.client_cpu / found.seconds:.2f} cores",
                    flush=True,
                )
        print(
            f"median ratio {statistics.median(ratios):.3f}, for each CPU second "
            f"{statistics.median(costs):.3f}"
        )


if __name__ == "__main__":
    main()
