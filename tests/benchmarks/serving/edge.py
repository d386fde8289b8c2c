"""Cost of TLS, tokens, limits and metrics: a secured and an open server loaded alternately."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from support.certificates import Authority

from benchmarks.serving import client
from benchmarks.serving.client import Load
from benchmarks.serving.loads import Case
from benchmarks.serving.processes import Processes
from benchmarks.serving.tables import Table
from topwork.access import tokens

MANY = 10**6
"""Rate limits that are counted but never reached."""


class Security:
    """Certificate, token and access file of a server, below a directory."""

    def __init__(self, directory: Path) -> None:
        authority = Authority(directory)
        pem, made = authority.issue("edge"), tokens.make()
        access = directory / "access.toml"
        access.write_text(
            f"[principals.load]\ntokens = ['{made.entry}']\nclassify = ['*']\n"
            f"limits = {{ calls = {MANY}, images = {MANY}, calls_per_second = {MANY} }}\n"
        )
        self.ca = authority.ca
        self.token = made.token
        self.tls = ssl.create_default_context(cafile=authority.ca)
        self.tls.set_alpn_protocols(["h2"])
        self.options: tuple[object, ...] = (
            *("--tls-cert", pem.cert, "--tls-key", pem.key, "--access", access),
            *("--metrics-port", 0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """Measurements of one load on both servers; figures are medians of the turns."""

    precision: str
    callers: int
    images: int
    """Images in each request."""
    open_images_per_second: float
    secured_images_per_second: float
    kept: float
    """Throughput of secured over open, for each pair of adjacent turns."""
    kept_from: float
    kept_to: float
    """Quartiles of ``kept``."""
    kept_by_cpu: float
    """CPU time of server and client per image, open over secured: independent of other load."""
    open_server_cpu_ms: float
    secured_server_cpu_ms: float
    """CPU milliseconds per image."""
    open_client_cpu_ms: float
    secured_client_cpu_ms: float


def measure(
    case: Case,
    security: Security,
    open_: tuple[str, Processes],
    secured: tuple[str, Processes],
    *,
    turns: int,
    seconds: float,
) -> Edge:
    """Load both servers ``turns`` times, in alternating order."""
    endpoints = (
        replace(case.endpoint, address=open_[0]),
        replace(case.endpoint, address=secured[0], tls=security.tls, token=security.token),
    )
    processes = (open_[1], secured[1])
    loads: list[tuple[Load, Load]] = []
    for turn in range(turns):
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        measured = {
            index: client.run(
                client.closed_loop(
                    endpoints[index],
                    case.bodies,
                    case.check,
                    callers=case.callers,
                    seconds=seconds,
                    server_cpu=processes[index].cpu_seconds,
                )
            )
            for index in order
        }
        loads.append((measured[0], measured[1]))
    rates = np.array([[load.calls_per_second * case.images for load in pair] for pair in loads])
    low, middle, high = np.percentile(rates[:, 1] / rates[:, 0], [25, 50, 75])
    server = np.array([[load.server_cpu / load.seconds for load in pair] for pair in loads]) / rates
    sender = np.array([[load.client_cpu / load.seconds for load in pair] for pair in loads]) / rates
    both = server + sender
    return Edge(
        precision=case.precision,
        callers=case.callers,
        images=case.images,
        open_images_per_second=float(np.median(rates[:, 0])),
        secured_images_per_second=float(np.median(rates[:, 1])),
        kept=float(middle),
        kept_from=float(low),
        kept_to=float(high),
        kept_by_cpu=float(np.median(both[:, 0] / both[:, 1])),
        open_server_cpu_ms=1e3 * float(np.median(server[:, 0])),
        secured_server_cpu_ms=1e3 * float(np.median(server[:, 1])),
        open_client_cpu_ms=1e3 * float(np.median(sender[:, 0])),
        secured_client_cpu_ms=1e3 * float(np.median(sender[:, 1])),
    )


def table(rows: Sequence[Edge]) -> Table:
    """Return the rows as a table."""
    titles = ["precision", "callers", "images", "open, images/s", "secured, images/s", "kept"]
    titles += ["middle half", "by CPU", "server CPU", "secured", "client CPU", "secured"]
    lines = [
        [
            row.precision,
            str(row.callers),
            str(row.images),
            f"{row.open_images_per_second:.0f}",
            f"{row.secured_images_per_second:.0f}",
            f"{row.kept:.3f}",
            f"{row.kept_from:.3f} to {row.kept_to:.3f}",
            f"{row.kept_by_cpu:.3f}",
            f"{row.open_server_cpu_ms:.2f}",
            f"{row.secured_server_cpu_ms:.2f}",
            f"{row.open_client_cpu_ms:.2f}",
            f"{row.secured_client_cpu_ms:.2f}",
        ]
        for row in rows
    ]
    return Table(name="edge", titles=titles, lines=lines, records=rows)
