"""Output of ``topwork token``."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from click.testing import CliRunner

from topwork.access.access_file import Access
from topwork.access.principals import Caller
from topwork.cli.commands import cli


def test_printed_entry_accepts_the_printed_token(tmp_path: Path) -> None:
    """Standard output has the entry without the secret; standard error has the token."""
    arguments = ["token", "line-3", "--role", "train", "--model", "screws", "--model", "nuts-*"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0
    token = done.stderr.split()[-1]
    assert token not in done.stdout
    caller = _caller(tmp_path / "access.toml", done.stdout, token)
    assert caller.principal.name == "line-3"
    caller.check("screws")
    caller.check("nuts-7")
    assert not caller.scope.has("bolts")


def test_json_has_token_and_entry() -> None:
    """``--json`` prints one object and nothing to standard error."""
    done = CliRunner().invoke(cli, ["token", "line-3", "--json"])
    assert set(json.loads(done.stdout)) == {"token", "entry"}
    assert not done.stderr


def test_principal_with_special_characters_is_refused() -> None:
    """Only letters, digits, _ and - are allowed in the access file's entry."""
    done = CliRunner().invoke(cli, ["token", 'a"]\nadmin = ["*'])
    assert done.exit_code == 1


def _caller(path: Path, text: str, token: str) -> Caller:
    async def read() -> Access:
        access = Access(path)
        await access.start()
        await access.aclose()
        return access

    path.write_text(text)
    metadata = [("authorization", f"Bearer {token}")]
    return asyncio.run(read()).caller("train", metadata, dict, "ipv4:127.0.0.1:1")
