"""The configuration as it is printed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from topwork.config import ServeConfig, TlsFiles, WorkerConfig, shown
from topwork.errors import InvalidInput


def test_all_that_is_in_effect_is_shown() -> None:
    """Every setting is there, paths as they are."""
    config = ServeConfig(repository=Path("repository"), tls_cert=Path("a"), tls_key=Path("b"))
    found = json.loads(shown(config))
    assert found["repository"] == "repository"
    assert (found["tls_cert"], found["tls_key"], found["client_ca"]) == ("a", "b", None)
    assert found["limits"]["max_images_per_request"] == 256
    assert found.keys() == {field.name for field in fields(ServeConfig)} | {"limits"}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@host/topwork",
        "postgresql://me:secret@secret/secret@host/topwork",
        "postgresql://host/topwork?user=me&password=secret",
        "postgresql://host/topwork?PASSWORD=secret&sslmode=require",
    ],
)
def test_no_password_is_shown(url: str) -> None:
    """Whatever form a URL has."""
    config = ServeConfig(repository=Path("repository"), database=url, otlp_endpoint=url)
    said = shown(config)
    assert "secret" not in said
    assert json.loads(said)["database"].startswith("postgresql://")
    assert "host/topwork" in said


def test_tls_files_are_those_of_the_flat_settings() -> None:
    """Without a certificate there are none: the server speaks plaintext."""
    config = ServeConfig(
        repository=Path("r"), tls_cert=Path("a"), tls_key=Path("b"), client_ca=Path("c")
    )
    assert config.tls == TlsFiles(cert=Path("a"), key=Path("b"), client_ca=Path("c"))
    assert ServeConfig(repository=Path("r")).tls is None


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "client_ca"])
def test_part_of_tls_alone_is_refused(name: str) -> None:
    """It would leave the server in plaintext, which nobody asked for."""
    files: dict[str, Any] = {name: Path("file.pem")}
    with pytest.raises(InvalidInput, match="go together"):
        ServeConfig(repository=Path("r"), **files)


def test_worker_is_named_for_its_host_where_hosts_share_a_database() -> None:
    """Otherwise its name is ``worker``; a name that is given stays."""
    url = "postgresql://host/topwork"
    assert WorkerConfig(repository=Path("r")).executor == "worker"
    assert WorkerConfig(repository=Path("r"), database=url).executor == socket.gethostname()
    assert WorkerConfig(repository=Path("r"), database=url, executor="mine").executor == "mine"


def test_quota_of_a_model_is_one_of_the_limits() -> None:
    """``--model-quota-megabytes`` counts millions of bytes."""
    config = ServeConfig(repository=Path("r"), model_quota_megabytes=3)
    assert config.limits.max_model_bytes == 3_000_000


def test_config_imports_neither_numpy_nor_onnxruntime() -> None:
    """``topwork serve --help`` needs the table of settings alone."""
    code = "import sys, topwork.config; print({'numpy', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
