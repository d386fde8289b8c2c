"""Table of the settings of ``topwork serve``, ``topwork worker`` and ``topwork gateway``.

Each field is an option of the same name (``queue_limit``: ``--queue-limit``), made by
``topwork.cli.settings``, an environment variable (``TOPWORK_SERVE_QUEUE_LIMIT``), a key of
``--print-config`` and a row in docs/configuration.md. Imports neither NumPy nor ONNX Runtime, so
that ``--help`` is fast.
"""

from __future__ import annotations

import json
import re
import socket
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from topwork.errors import InvalidInput
from topwork.limits import DEFAULT_LIMITS, ServerLimits
from topwork.runtime.cores import available_cores
from topwork.runtime.process import Priority
from topwork.runtime.providers import Provider
from topwork.runtime.relay import Format
from topwork.storage.location import CACHE_GIGABYTES, Location, ObjectCache

if TYPE_CHECKING:
    from topwork.bundle.signing.signatures import SigningFiles
    from topwork.bundle.store import Repository

_SECRETS = re.compile(r"(?<=//)[^/@]*:.*(?=@)|(?<=password=)[^&]*", re.IGNORECASE)
"""Passwords in a URL: user name and password, and the parameter ``password``."""

Kind = Literal[
    "",
    "flag",
    "address",
    "port or address",
    "server",
    "url",
    "directory",
    "repository",
    "file",
    "existing",
    "existing file",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Help, default and bounds of a field's option on the command line."""

    help: str
    default: str = ""
    """Description of the default, if the field's own default does not say it."""
    kind: Kind = ""
    """Kind of a text or path; "flag": a bool without ``--no-``."""
    least: int | None = None
    most: int | None = None
    above: float | None = None
    """Bounds; ``above`` is an exclusive lower bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files of TLS, read again for each connection."""

    cert: Path
    """The server's certificate and the intermediate certificates."""
    key: Path
    client_ca: Path | None = None
    """Certificate of the CA that signs client certificates; None: clients need none."""


HttpPort = Annotated[
    str,
    Setting(
        kind="port or address",
        default="none",
        help="PORT of the loopback, or HOST:PORT, that serves the HTTP/JSON API; needs extra http.",
    ),
]
HttpHosts = Annotated[
    str,
    Setting(
        default="names of the loopback, if only this host can reach the port; otherwise any",
        help="Comma-separated host names by which HTTP clients call the port; others are refused.",
    ),
]
HttpCorsOrigins = Annotated[
    str,
    Setting(
        default="none",
        help="Comma-separated origins, such as https://example.org, whose pages may call the HTTP "
        "API.",
    ),
]
HttpConsole = Annotated[
    bool,
    Setting(help="Serve the console, a web page, at / of the HTTP port."),
]
TlsCert = Annotated[
    Path | None,
    Setting(
        kind="file",
        default="plaintext",
        help="PEM file of the server's certificate; may be replaced without a restart.",
    ),
]
TlsKey = Annotated[
    Path | None,
    Setting(kind="file", default="none", help="PEM file of the certificate's private key."),
]
ClientCa = Annotated[
    Path | None,
    Setting(
        kind="file",
        default="none",
        help="PEM file of the CA that signs client certificates; clients then need one (mTLS).",
    ),
]
Insecure = Annotated[
    bool,
    Setting(
        kind="flag",
        help="Accept plaintext connections from other hosts, not only from the loopback.",
    ),
]
GatewayKey = Annotated[
    Path | None,
    Setting(
        kind="existing file",
        default="none",
        help="File with a key of at least 32 characters, the same for the server and a gateway "
        "that runs alone: the server then believes the gateway its callers' addresses.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """The settings of ``topwork worker``; pickled for the worker process."""

    repository: Annotated[
        Location,
        Setting(
            kind="repository",
            help="Directory of bundles, created if it is missing, or the URL of a bucket, such as "
            "s3://bucket/prefix; needs extra s3.",
        ),
    ]
    cores: Annotated[
        int,
        Setting(
            least=1,
            default="CPU affinity and cgroup quota",
            help="Number of cores that decode images and run the backbone.",
        ),
    ] = field(default_factory=available_cores)
    database: Annotated[
        str,
        Setting(
            kind="url",
            default="SQLite file in the repository",
            help="URL of the database of operations, such as postgresql://user@host/topwork; "
            "needed for several hosts.",
        ),
    ] = ""
    cache_directory: Annotated[
        Path | None,
        Setting(
            kind="directory",
            default="~/.cache/topwork/objects",
            help="Directory in which all processes of the host keep files of a bucket.",
        ),
    ] = None
    cache_gigabytes: Annotated[
        int,
        Setting(least=1, help="Size of --cache-directory; the least recently used files leave it."),
    ] = CACHE_GIGABYTES
    executor: Annotated[
        str,
        Setting(
            default="worker; with --database the host's name",
            help="Name of the worker: the same after every restart, different on each host.",
        ),
    ] = ""
    trusted_keys: Annotated[
        Path | None,
        Setting(
            kind="existing",
            default="none",
            help="PEM file of trusted public keys, or a directory of such files: revisions signed "
            "only by other keys are refused.",
        ),
    ] = None
    require_signed: Annotated[
        bool, Setting(kind="flag", help="Refuse revisions that no trusted key has signed.")
    ] = False
    signing_key: Annotated[
        Path | None,
        Setting(
            kind="existing file",
            default="none",
            help="PEM file of the private key with which the worker signs what it publishes.",
        ),
    ] = None
    worker_priority: Annotated[
        Priority,
        Setting(
            help="idle: the worker gets only the time that all other processes of the host leave; "
            "normal: its share, from serving too."
        ),
    ] = "idle"
    log_format: Annotated[Format, Setting(help="Format of the log on standard error.")] = "text"

    def __post_init__(self) -> None:
        """Name the worker: the same name after a restart, another name on each host."""
        if not self.executor:
            name = socket.gethostname() if self.database else "worker"
            object.__setattr__(self, "executor", name)

    def open_repository(self, *, publishes: bool) -> Repository:
        """Open the repository. Raises InvalidInput, OSError."""
        from topwork.bundle.opening import open_repository

        cache = ObjectCache(size=self.cache_gigabytes * 10**9)
        if self.cache_directory is not None:
            cache = replace(cache, directory=self.cache_directory)
        return open_repository(
            self.repository,
            self.signing.read(publishes=publishes),
            database=self.database,
            cache=cache,
            writes=True,
        )

    @property
    def signing(self) -> SigningFiles:
        """The keys that verify and sign revisions."""
        from topwork.bundle.signing.signatures import SigningFiles

        return SigningFiles(
            trusted_keys=self.trusted_keys,
            require_signed=self.require_signed,
            signing_key=self.signing_key,
        )

    @property
    def limits(self) -> ServerLimits:
        """The limits of requests and models."""
        return DEFAULT_LIMITS


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig(WorkerConfig):
    """The settings of ``topwork serve`` and its worker. Raises InvalidInput if TLS lacks a file."""

    address: Annotated[
        str,
        Setting(
            kind="address",
            help="HOST:PORT, [IPv6]:PORT or unix:PATH to listen on; port 0 is a free port, which "
            "the log names.",
        ),
    ] = "127.0.0.1:50051"
    tls_cert: TlsCert = None
    tls_key: TlsKey = None
    client_ca: ClientCa = None
    mtls_address: Annotated[
        str,
        Setting(
            kind="address",
            default="none",
            help="Second address, for clients with a certificate; --address then accepts clients "
            "without.",
        ),
    ] = ""
    insecure: Insecure = False
    access: Annotated[
        Path | None,
        Setting(
            kind="file",
            default="everybody may call everything",
            help="TOML file of tokens, roles and rate limits.",
        ),
    ] = None
    health_port: Annotated[
        str,
        Setting(
            kind="port or address",
            default="none",
            help="PORT of the loopback, HOST:PORT or unix:PATH that serves only health checks, in "
            "plaintext.",
        ),
    ] = ""
    http_port: HttpPort = ""
    http_hosts: HttpHosts = ""
    http_cors_origins: HttpCorsOrigins = ""
    http_console: HttpConsole = True
    gateway_key: GatewayKey = None
    reflection: Annotated[
        bool, Setting(help="Serve gRPC reflection, which tools such as grpcurl use.")
    ] = True
    channelz: Annotated[
        bool,
        Setting(
            help="Serve gRPC channelz, the state of connections, to admins; needs extra channelz."
        ),
    ] = False
    provider: Annotated[
        Provider,
        Setting(
            help="Execution provider of ONNX Runtime; auto is CUDA if it works, otherwise the CPU."
        ),
    ] = "auto"
    queue_limit: Annotated[
        int,
        Setting(
            least=1,
            help="Images in the server at a time, of all callers; further requests of callers that "
            "have their share are refused at once, further images of streams wait.",
        ),
    ] = 512
    head_megabytes: Annotated[
        int, Setting(least=1, help="Size of the LRU cache of heads in memory.")
    ] = 1000
    max_seconds: Annotated[
        float,
        Setting(above=0, help="Time limit of a Classify call, even if its deadline is later."),
    ] = 60.0
    connection_seconds: Annotated[
        float | None,
        Setting(
            above=0,
            default="never",
            help="Age at which a connection is closed, after its calls end; the client reconnects, "
            "perhaps to another server.",
        ),
    ] = None
    grace_seconds: Annotated[
        float, Setting(least=0, help="Time that calls in flight have to finish after SIGTERM.")
    ] = 10.0
    metrics_port: Annotated[
        int | None,
        Setting(
            least=0,
            most=65535,
            default="none",
            help="Port of Prometheus' GET /metrics, on the host of --address, or on the loopback "
            "if that is a socket.",
        ),
    ] = None
    metric_models: Annotated[
        int,
        Setting(
            least=0,
            help="Models with metrics of their own, those that answer first; others are counted "
            "together.",
        ),
    ] = 100
    metric_labels: Annotated[
        int,
        Setting(
            least=0,
            help="Labels of a model that are counted each, those that are predicted first; others "
            "are counted together.",
        ),
    ] = 50
    worker: Annotated[
        bool,
        Setting(help="Run the worker beside the server; otherwise run `topwork worker`."),
    ] = True
    model_quota_megabytes: Annotated[
        int,
        Setting(
            least=1,
            help="Disk quota of a model's revisions, exemplars and uploaded images; changes beyond "
            "it are refused.",
        ),
    ] = DEFAULT_LIMITS.max_model_bytes // 10**6
    max_models: Annotated[
        int,
        Setting(
            least=1,
            help="Models of the repository; CreateModel and CopyModel beyond it are refused.",
        ),
    ] = DEFAULT_LIMITS.max_models
    bundled_backbone: Annotated[
        Path | None,
        Setting(
            kind="directory",
            default="none",
            help="Directory with backbone.onnx and backbone.json, which the server stores in a "
            "repository that has no backbone.",
        ),
    ] = None
    otlp_endpoint: Annotated[
        str,
        Setting(
            kind="url",
            default="none",
            help="URL of an OpenTelemetry collector that receives spans, such as "
            "http://127.0.0.1:4318; needs extra otel.",
        ),
    ] = ""

    def __post_init__(self) -> None:
        """Check the combination of TLS settings."""
        WorkerConfig.__post_init__(self)  # super() fails in a dataclass with slots
        _check_tls(self)

    @property
    def tls(self) -> TlsFiles | None:
        """The PEM files of TLS, or None for plaintext."""
        return _tls_files(self)

    @property
    def limits(self) -> ServerLimits:
        """The limits of requests and models."""
        return replace(
            DEFAULT_LIMITS,
            max_model_bytes=self.model_quota_megabytes * 10**6,
            max_models=self.max_models,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """The settings of ``topwork gateway``. Raises InvalidInput if TLS lacks a file."""

    server: Annotated[str, Setting(kind="server", help="Address of the gRPC server.")] = (
        "127.0.0.1:50051"
    )
    server_tls: Annotated[
        bool,
        Setting(kind="flag", help="Use TLS to the server; --server-ca and --server-cert imply it."),
    ] = False
    server_ca: Annotated[
        Path | None,
        Setting(
            kind="existing file",
            default="gRPC's CAs",
            help="PEM file of the CA that signed the server's certificate.",
        ),
    ] = None
    server_cert: Annotated[
        Path | None,
        Setting(
            kind="existing file",
            default="none",
            help="PEM file of the gateway's certificate, for a server that wants one (mTLS).",
        ),
    ] = None
    server_key: Annotated[
        Path | None,
        Setting(kind="existing file", default="none", help="PEM file of its private key."),
    ] = None
    http_port: Annotated[
        str, Setting(kind="port or address", help="PORT of the loopback, or HOST:PORT.")
    ] = "127.0.0.1:8080"
    http_hosts: HttpHosts = ""
    http_cors_origins: HttpCorsOrigins = ""
    http_console: HttpConsole = True
    gateway_key: GatewayKey = None
    tls_cert: TlsCert = None
    tls_key: TlsKey = None
    client_ca: ClientCa = None
    insecure: Insecure = False
    grace_seconds: Annotated[
        float, Setting(least=0, help="Time that requests in flight have to finish after SIGTERM.")
    ] = 10.0
    log_format: Annotated[Format, Setting(help="Format of the log on standard error.")] = "text"

    def __post_init__(self) -> None:
        """Check the combination of TLS settings."""
        _check_tls(self)

    @property
    def tls(self) -> TlsFiles | None:
        """The PEM files of TLS, or None for plaintext."""
        return _tls_files(self)


def to_json(config: ServeConfig) -> str:
    """Return a configuration and its limits as JSON, without the passwords in URLs."""
    settings = {
        name: _SECRETS.sub("***", value) if isinstance(value, str) else value
        for name, value in asdict(config).items()
    }
    return json.dumps({**settings, "limits": asdict(config.limits)}, indent=2, default=str)


def _tls_files(config: ServeConfig | GatewayConfig) -> TlsFiles | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    return TlsFiles(cert=config.tls_cert, key=config.tls_key, client_ca=config.client_ca)


def _check_tls(config: ServeConfig | GatewayConfig) -> None:
    if config.tls is None and (config.tls_cert or config.tls_key or config.client_ca):
        raise InvalidInput(
            "--tls-cert and --tls-key go together, and --client-ca needs both", field="tls_cert"
        )
