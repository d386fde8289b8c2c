"""The configuration as it is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from topwork.config import ServeConfig, TlsFiles, shown


def test_all_that_is_in_effect_is_shown() -> None:
    """Every setting is there, paths as they are."""
    tls = TlsFiles(cert=Path("server.pem"), key=Path("server.key"))
    config = ServeConfig(repository=Path("repository"), tls=tls)
    found = json.loads(shown(config))
    assert found["repository"] == "repository"
    assert found["tls"] == {"cert": "server.pem", "key": "server.key", "client_ca": None}
    assert found["limits"]["max_images_per_request"] == 256
    assert set(found) == set(ServeConfig.__slots__)


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
