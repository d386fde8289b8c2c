"""Settings: printed JSON, TLS files, defaults."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from topwork.config import ServeConfig, TlsFiles, WorkerConfig, to_json
from topwork.errors import InvalidInput


def test_to_json_has_every_setting() -> None:
    """The JSON has all settings and limits; paths are strings."""
    config = ServeConfig(repository=Path("repository"), tls_cert=Path("a"), tls_key=Path("b"))
    found = json.loads(to_json(config))
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
def test_to_json_hides_passwords(url: str) -> None:
    """Passwords are hidden in every form of URL."""
    config = ServeConfig(repository=Path("repository"), database=url, otlp_endpoint=url)
    text = to_json(config)
    assert "secret" not in text
    assert json.loads(text)["database"].startswith("postgresql://")
    assert "host/topwork" in text


def test_tls_has_the_files_of_the_settings() -> None:
    """``tls`` has the three files, and is None without a certificate."""
    config = ServeConfig(
        repository=Path("r"), tls_cert=Path("a"), tls_key=Path("b"), client_ca=Path("c")
    )
    assert config.tls == TlsFiles(cert=Path("a"), key=Path("b"), client_ca=Path("c"))
    assert ServeConfig(repository=Path("r")).tls is None


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "client_ca"])
def test_incomplete_tls_is_refused(name: str) -> None:
    """A single file would leave the server in plaintext."""
    files: dict[str, Any] = {name: Path("file.pem")}
    with pytest.raises(InvalidInput, match="go together"):
        ServeConfig(repository=Path("r"), **files)


def test_executor_defaults_to_host_name_with_a_shared_database() -> None:
    """Without a shared database the default is ``worker``; an explicit name wins."""
    url = "postgresql://host/topwork"
    assert WorkerConfig(repository=Path("r")).executor == "worker"
    assert WorkerConfig(repository=Path("r"), database=url).executor == socket.gethostname()
    assert WorkerConfig(repository=Path("r"), database=url, executor="mine").executor == "mine"


def test_model_quota_sets_a_limit() -> None:
    """``--model-quota-megabytes`` is in units of 1,000,000 bytes."""
    config = ServeConfig(repository=Path("r"), model_quota_megabytes=3)
    assert config.limits.max_model_bytes == 3_000_000


def test_config_imports_neither_numpy_nor_onnxruntime() -> None:
    """``topwork serve --help`` stays fast."""
    code = "import sys, topwork.config; print({'numpy', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
