"""The container image `serve`. `make image-test` builds it and runs these tests."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from support import containers, postgres, servers, tiny
from support.containers import Container, Engine, Spec, container
from support.pictures import picture, pictures

from topwork import Client, result
from topwork.bundle.store import Repository
from topwork_trainer.backbones import DEFAULT, BackboneChoice

pytestmark = pytest.mark.image

BASE = "debian:bookworm-slim"
MOST_BYTES = 400_000_000
"""Maximum size of the image without its base."""
COLD_START_SECONDS = 3.0
OTHER_USER = 123_456
"""User id without an account in the image."""
VIOLETS = [(f"violet-{n}.png", content) for n, content in enumerate(pictures("violet", 12))]


@pytest.fixture(scope="session")
def engine() -> Engine:
    """Return the engine that runs containers of the image."""
    if not (image := os.environ.get("TOPWORK_IMAGE")):
        pytest.skip("there is no image: `make image-test` builds one and runs this")
    return containers.engine(os.environ["TOPWORK_ENGINE"], image)


def owned(repository: Path, user: int) -> Path:
    """Change a repository's owner to a container's user; return the repository."""
    for path in (repository, *repository.rglob("*")):
        os.chown(path, user, 0)
    return repository


def serving(repository: Path, *arguments: str, user: int = containers.USER) -> Spec:
    """Return the spec of a server of ``repository`` on a free port of the loopback."""
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        address, health = (f"127.0.0.1:{free.getsockname()[1]}" for free in (first, second))
    return Spec(
        arguments=("serve", *arguments) if arguments else (),
        user=user,
        environment={
            "TOPWORK_SERVE_ADDRESS": address,
            "TOPWORK_SERVE_METRICS_PORT": "0",
            "TOPWORK_SERVE_HEALTH_PORT": health,
            "TOPWORK_HEALTH_ADDRESS": health,
        },
        volumes={owned(repository, user): "/repository"},
    )


@pytest.fixture(scope="module", params=[containers.USER, OTHER_USER], ids=["own", "other"])
def served(
    request: pytest.FixtureRequest, engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """Yield a ready server, run by the image's user or by a user without an account."""
    repository = tiny.repository(tmp_path_factory.mktemp("served") / "repository").root
    with container(engine, serving(repository, user=request.param)) as started:
        started.running.log_entry("worker ready")
        yield started


def test_classify_and_add_class(served: Container) -> None:
    """A client classifies and adds a class, and the new revision recognises it.

    The root file system is read-only.
    """
    with Client(served.running.address) as client:
        before = client.classify("colours", [picture("violet", 60)])
        assert before.revision == 1
        accepted = client.add_class("colours", "violet", VIOLETS)
        *_, finished = client.watch(accepted.name)
        assert result(finished).revision.revision == 2
        after = client.classify("colours", [picture("violet", 60)])
        assert after.revision == 2
        assert after.results[0].predictions[0].label == "violet"
    status, output = served.inside("sh", "-c", "touch /opt/topwork/marker")
    assert status != 0
    assert "Read-only file system" in output


def test_only_the_repository_is_written_to(served: Container) -> None:
    """Serving and AddClass leave nothing in /tmp, the home directory."""
    status, output = served.inside("find", "/tmp", "-mindepth", "1")  # noqa: S108  # the container's
    assert (status, output) == (0, "")


def test_health(served: Container) -> None:
    """The image's HEALTHCHECK reports SERVING."""
    assert served.inside("topwork", "health") == (0, "SERVING\n")


def test_process_1_is_python(served: Container) -> None:
    """The server is process 1, without a shell or init process."""
    status, output = served.inside("cat", "/proc/1/cmdline")
    assert status == 0
    assert Path(output.split("\0")[0]).name.startswith("python")
    assert output.split("\0")[1] == "/opt/topwork/bin/topwork"


def test_the_image_has_no_build_or_training_tools(served: Container) -> None:
    """The image has no torch, compiler, pip or trainer."""
    modules = "torch", "pip", "ensurepip", "setuptools", "topwork_trainer"
    code = f"import importlib.util as u; print([m for m in {modules!r} if u.find_spec(m)])"
    assert served.inside("python3", "-c", code) == (0, "[]\n")
    commands = "cc gcc g++ make pip pip3 curl wget topwork-train"
    status, output = served.inside("sh", "-c", f"for c in {commands}; do command -v $c; done; :")
    assert (status, output) == (0, "")


def test_sigterm_stops_the_container(engine: Engine, colours: Repository) -> None:
    """On SIGTERM process 1 and its worker end with status 0, and log it."""
    with container(engine, serving(colours.root)) as started:
        started.running.log_entry("worker ready")
        before = time.monotonic()
        assert started.stop() == 0
        assert time.monotonic() - before < 5
        assert started.running.wait_ended(), "a process is left"
        started.running.log_entry("stopping")


def test_sigterm_during_the_start_stops_the_container(engine: Engine, colours: Repository) -> None:
    """The server handles SIGTERM from its start, since process 1 has no default handler."""
    with container(engine, serving(colours.root)) as started:

        def handles_sigterm() -> bool:
            status, output = started.inside("sed", "-n", "s/^SigCgt:\\s*//p", "/proc/1/status")
            return status == 0 and bool(int(output, 16) & 1 << (signal.SIGTERM - 1))

        servers.eventually(handles_sigterm)
        assert '"ready"' not in started.running.log
        assert started.stop() == 0
        assert started.running.wait_ended()


def test_image_configuration(engine: Engine) -> None:
    """The image has an unprivileged user, no shell as entrypoint, a health check and labels."""
    config = engine.config()
    assert config["User"] == f"{containers.USER}:0"
    assert (config["Entrypoint"], config["Cmd"]) == (["topwork"], ["serve"])
    assert config["Healthcheck"]["Test"] == ["CMD", "topwork", "health"]
    labels = {name.rpartition(".")[2]: text for name, text in config["Labels"].items()}
    assert labels["licenses"] == "Apache-2.0"
    assert all(labels[name] for name in ("title", "description", "version", "revision", "created"))


def test_image_size(engine: Engine) -> None:
    """The image is at most 400 MB larger than its base."""
    size = engine.bytes_above(BASE)
    print(f"{size / 1e6:.0f} MB above {BASE}")
    assert size <= MOST_BYTES


def test_cold_start(engine: Engine, tmp_path: Path) -> None:
    """A container with the default backbone is ready within 3 s.

    On a busy machine the CPU time of process 1 is measured instead.
    """
    spec = serving(default_backbone(tmp_path / "repository"), "--no-worker")
    times, cpu_seconds = [], []
    for _ in range(3):
        start = time.monotonic()
        with container(engine, spec) as started:
            started.running.log_entry("ready")
            times.append(time.monotonic() - start)
            _, output = started.inside("cat", "/proc/1/stat")
            user, system = output.rpartition(")")[2].split()[11:13]
            cpu_seconds.append((int(user) + int(system)) / os.sysconf("SC_CLK_TCK"))
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    print(f"ready after {min(times):.2f} s; {min(cpu_seconds):.2f} s of CPU time; {busy=}")
    assert min(cpu_seconds if busy else times) <= COLD_START_SECONDS


def default_backbone(root: Path) -> Path:
    """Return a repository with one model, fitted on rendered flowers with the default backbone."""
    from topwork_trainer import commands

    photos = root.parent / "photos"
    commands.run("topwork_trainer", "demo-data", photos, "--images-per-label", 8, "--seed", 7)
    commands.run(
        "topwork_trainer", "fit", photos, "--model", "flowers", "--repository", root,
        "--backbone", BackboneChoice(name=DEFAULT).name, "--json",
    )  # fmt: skip
    return root


def test_server_and_worker_in_separate_containers(engine: Engine, colours: Repository) -> None:
    """With PostgreSQL a worker in one container does the operations of a server in another."""
    with postgres.running() as cluster:
        url = cluster.new_database()
        directory = Path(parse_qs(urlsplit(url).query)["host"][0])
        directory.chmod(0o755)
        volumes = {owned(colours.root, containers.USER): "/repository", directory: str(directory)}
        base = serving(colours.root, "--no-worker")
        server_spec = Spec(
            arguments=base.arguments,
            environment={**base.environment, "TOPWORK_SERVE_DATABASE": url},
            volumes=volumes,
        )
        worker_spec = Spec(
            arguments=("worker", "--executor", "topwork-worker-0"),
            environment={"TOPWORK_WORKER_DATABASE": url},
            volumes=volumes,
        )
        with (
            container(engine, server_spec) as server,
            container(engine, worker_spec) as worker,
        ):
            with Client(server.running.address) as client:
                accepted = client.add_class("colours", "violet", VIOLETS)
                *_, finished = client.watch(accepted.name)
                assert result(finished).revision.revision == 2
            assert worker.running.log_entry("worker ready")["executor"] == "topwork-worker-0"
            assert worker.stop() == 0
            assert worker.running.wait_ended()
