"""Clients of several servers while these are replaced, killed and added, as in a rollout."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from support import servers
from support.dns import Names
from support.load import Load
from support.servers import Running

from topwork.bundle.store import Repository

REPLACEMENTS = 4
NAME = "topwork.default.svc"
SPREAD_SECONDS = 20.0
"""Seconds after which a new server must have calls; ``--connection-seconds`` is 1 in the test."""

Start = Callable[..., tuple[str, Running]]
"""(setting=value, ...) -> the server's address, and the server."""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients do not know that a name is this host."""
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def port() -> int:
    """Return a port of the loopback that is free."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number: int = probe.getsockname()[1]
        return number


@pytest.fixture
def start(colours: Repository, port: int) -> Iterator[Start]:
    """Yield a function that starts a server on an address of its own, as pods have."""
    numbers = itertools.count(2)
    with contextlib.ExitStack() as stack:

        def started(**settings: Any) -> tuple[str, Running]:
            host = f"127.0.0.{next(numbers)}"
            address = f"{host}:{port}"
            running = servers.running(colours.root, worker=False, address=address, **settings)
            return host, stack.enter_context(running)

        yield started


def calls_of(server: Running) -> int:
    """Return the number of calls that a server has answered."""
    return sum(entry.get("event") == "call" for entry in server.log_entries)


def test_replaced_servers_fail_no_call(start: Start, port: int) -> None:
    """A new server is ready before an old one stops: both clients go on, and use the new one."""
    current = [start(), start()]
    with (
        Names(host for host, _ in current) as names,
        Load(names.target(NAME, port), "colours") as load,
    ):
        load.wait()
        for _ in range(REPLACEMENTS):
            old, (_, stopping) = current[1], current[0]
            new = start()
            current = [old, new]
            names.addresses = [host for host, _ in current]
            assert stopping.stop() == 0
            load.wait()
            assert servers.eventually(partial(calls_of, new[1]))
    assert not load.failures


def test_the_only_server_is_replaced_without_a_failed_call(start: Start, port: int) -> None:
    """Clients resolve the name again at once: gRPC's default would wait for 30 s."""
    (host, old), (_, new) = start(), start()
    with Names([host]) as names, Load(names.target(NAME, port), "colours") as load:
        load.wait()
        names.addresses = ["127.0.0.3"]
        assert old.stop() == 0
        load.wait()
    assert not load.failures
    assert calls_of(new)


def test_a_killed_server_fails_no_call(start: Start, port: int) -> None:
    """Retries reach another server of a target that lists addresses."""
    (first, killed), (second, left) = start(), start()
    target = f"ipv4:{first}:{port},{second}:{port}"
    with Load(target, "colours") as load:
        load.wait()
        assert calls_of(killed)
        killed.kill()
        load.wait()
        before = calls_of(left)
        load.wait()
        assert calls_of(left) > before
    assert not load.failures


def test_an_added_server_gets_calls(start: Start, port: int) -> None:
    """--connection-seconds makes clients that live long resolve the name again."""
    host, _ = start(connection_seconds=1.0)
    with Names([host]) as names, Load(names.target(NAME, port), "colours") as load:
        load.wait()
        other, added = start(connection_seconds=1.0)
        names.addresses = [host, other]
        began = time.monotonic()
        servers.eventually(lambda: calls_of(added) or load.failures)
        assert time.monotonic() - began < SPREAD_SECONDS
        load.wait(100)
    assert not load.failures
