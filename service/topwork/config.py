"""What a server needs to know. Only the command line fills it in."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from topwork.bundle.signing.signatures import NO_FILES, SigningFiles
from topwork.limits import DEFAULT_LIMITS, Limits
from topwork.runtime.backend import Provider
from topwork.runtime.logs import Format

_SECRETS = re.compile(r"(?<=//)[^/@]*:.*(?=@)|(?<=password=)[^&]*", re.IGNORECASE)
"""In a URL: who logs in and how, and what else may be a password."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files, looked at anew for each connection."""

    cert: Path
    """The server's certificate, and those between it and its authority."""
    key: Path
    client_ca: Path | None = None
    """Who signs clients' certificates; None: clients need none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """The settings of ``topwork serve``; each is an option of the same name."""

    repository: Path
    address: str = "127.0.0.1:50051"
    """HOST:PORT or unix:PATH; port 0 takes a free one."""
    tls: TlsFiles | None = None
    """None: plaintext, which only this host may speak unless ``insecure``."""
    mtls_address: str = ""
    """Where clients must show a certificate, who then need none at ``address``."""
    insecure: bool = False
    """Whether other hosts may speak plaintext."""
    access: Path | None = None
    """File that says who may call what; None: everybody may call everything."""
    health_address: str = ""
    """HOST:PORT or unix:PATH where health, and nothing else, is answered in plaintext."""
    reflection: bool = True
    """Whether tools may ask for the contract."""
    channelz: bool = False
    """Whether gRPC tells of its connections."""
    provider: Provider = "auto"
    cores: int = 1
    """Threads that decode, and threads that run the backbone on CPU."""
    queue_limit: int = 512
    """Images in the server at a time, over all callers; more are refused."""
    head_megabytes: int = 1000
    """What heads in memory may weigh together; those least recently asked for leave first."""
    most_seconds: float = 60.0
    """What a Classify call may take at most, whatever deadline its caller set."""
    connection_seconds: float | None = None
    """After which a connection ends once its calls have; None: never."""
    grace_seconds: float = 10.0
    """How long calls in flight may go on after SIGTERM."""
    metrics_port: int | None = None
    """Where Prometheus' GET /metrics is answered; None: nowhere.

    On the host of ``address``; where that is a socket, on the loopback.
    """
    database: str = ""
    """URL of the database that keeps operations; empty: a SQLite file in the repository."""
    worker: bool = True
    """Whether this process keeps a worker beside it; else others must run one."""
    executor: str = "worker"
    """The worker's name, the same after every restart; each host that works needs its own."""
    signing: SigningFiles = NO_FILES
    """Whose signatures revisions must have, and the key of this process's worker."""
    otlp_endpoint: str = ""
    """URL of OpenTelemetry's collector; empty: no spans."""
    log_format: Format = "text"
    limits: Limits = DEFAULT_LIMITS


def shown(config: ServeConfig) -> str:
    """Return a configuration as JSON, without the passwords in its URLs."""
    fields = {
        name: _SECRETS.sub("***", value) if isinstance(value, str) else value
        for name, value in asdict(config).items()
    }
    return json.dumps(fields, indent=2, default=str)
