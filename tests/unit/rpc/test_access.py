"""What the access file says of a call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from topwork.errors import Forbidden, InvalidInput, Unauthenticated
from topwork.rpc import tokens
from topwork.rpc.access import Access, Shown
from topwork.rpc.principals import Caller, Role

LINE, OPERATOR = tokens.make(), tokens.make()

FILE = f"""
[principals.line-3]
tokens = ["{LINE.entry}"]
certificates = ["URI:spiffe://factory/line-3", "CN:line-3"]
classify = ["screws", "nuts-*"]
train = ["nuts-7"]

[principals.operator]
tokens = ["{OPERATOR.entry}"]
certificates = ["DNS:operator.factory"]
admin = ["*"]

[principals.nobody]
certificates = ["CN:nobody"]
"""


def read(path: Path, text: str = FILE) -> Access:
    """Return what a file says."""

    async def start() -> Access:
        access = Access(path)
        await access.start()
        await access.aclose()
        return access

    path.write_text(text)
    return asyncio.run(start())


@pytest.fixture
def access(tmp_path: Path) -> Access:
    """Return the access that FILE gives."""
    return read(tmp_path / "access.toml")


def ask(
    access: Access,
    role: Role = "classify",
    *,
    authorization: str | None = None,
    shown: Shown | None = None,
) -> Caller:
    """Return who calls."""
    metadata: Sequence[tuple[str, str | bytes]] = [("user-agent", "test")]
    if authorization is not None:
        metadata = [*metadata, ("authorization", authorization)]
    return access.caller(role, metadata, lambda: shown or {})


def test_without_a_file_everybody_may_do_everything() -> None:
    """A server that was told nothing asks nothing; a certificate still gives the audit a name."""
    caller = ask(Access(None), "admin")
    caller.check_role()
    caller.check("any")
    assert not caller.principal.name
    named = ask(Access(None), "admin", shown={"x509_common_name": [b"line-3"]})
    assert named.principal.name == "line-3"
    named.check("any")


def test_a_file_that_was_not_read_lets_nobody_in(tmp_path: Path) -> None:
    """There is no moment before the file counts."""
    with pytest.raises(Unauthenticated):
        ask(Access(tmp_path / "access.toml"))


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        ({"peer_uri": [b"spiffe://factory/line-3"]}, "line-3"),
        ({"x509_common_name": [b"line-3"]}, "line-3"),
        ({"peer_dns": [b"a.factory", b"operator.factory"]}, "operator"),
        ({"peer_dns": [b"operator.factory"], "x509_common_name": [b"line-3"]}, "operator"),
    ],
)
def test_a_certificate_says_who_calls(access: Access, shown: Shown, name: str) -> None:
    """By its URI, DNS name or common name, whichever is known, in this order."""
    assert ask(access, shown=shown).principal.name == name


def test_a_token_counts_before_a_certificate(access: Access) -> None:
    """A proxy's certificate is not its client's; a wrong token is not made good by one."""
    operator: Shown = {"peer_dns": [b"operator.factory"]}
    caller = ask(access, authorization=f"Bearer {LINE.token}", shown=operator)
    assert caller.principal.name == "line-3"
    with pytest.raises(Unauthenticated):
        ask(access, authorization="Bearer topwork_1_2", shown=operator)


@pytest.mark.parametrize(
    ("authorization", "shown", "reason"),
    [
        (None, {}, "CREDENTIALS_MISSING"),
        (LINE.token, {}, "CREDENTIALS_MISSING"),
        (f"Basic {LINE.token}", {}, "CREDENTIALS_MISSING"),
        ("Bearer ", {}, "CREDENTIALS_UNKNOWN"),
        (f"Bearer {tokens.make().token}", {}, "CREDENTIALS_UNKNOWN"),
        (None, {"x509_common_name": [b"stranger"]}, "CREDENTIALS_UNKNOWN"),
        (None, {"peer_dns": [b"line-3"]}, "CREDENTIALS_UNKNOWN"),
    ],
)
def test_who_is_not_known_is_refused(
    access: Access, authorization: str | None, shown: Shown, reason: str
) -> None:
    """Without credentials, and with any but those in the file; none is repeated in the text."""
    with pytest.raises(Unauthenticated) as caught:
        ask(access, authorization=authorization, shown=shown)
    assert caught.value.reason == reason
    assert "topwork_" not in str(caught.value)


@pytest.mark.parametrize(
    ("role", "model", "allowed"),
    [
        ("classify", "screws", True),
        ("classify", "screws-2", False),
        ("classify", "nuts-", True),
        ("classify", "nuts-7", True),
        ("classify", "nuts", False),
        ("classify", "", False),
        ("train", "nuts-7", True),
        ("train", "nuts-8", False),
        ("train", "screws", False),
    ],
)
def test_a_role_is_for_its_models(access: Access, role: Role, model: str, allowed: bool) -> None:
    """Names are whole, a star ends the beginning of many, and a role has those below it."""
    caller = ask(access, role, authorization=f"Bearer {LINE.token}")
    if allowed:
        caller.check(model)
    else:
        with pytest.raises(Forbidden) as caught:
            caller.check(model)
        assert caught.value.reason == "MODEL_FORBIDDEN"


def test_who_has_a_role_for_no_model_is_refused_at_once(access: Access) -> None:
    """Before any request is read."""
    with pytest.raises(Forbidden, match="not 'admin' of any"):
        ask(access, "admin", authorization=f"Bearer {LINE.token}").check_role()
    with pytest.raises(Forbidden):
        ask(access, shown={"x509_common_name": [b"nobody"]}).check_role()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("principals = 3", "Expected `object`"),
        ("[principals.a]\nadmn = ['*']", "unknown field `admn`"),
        ("[principals.a]\nadmin = ['a/b']", "is no model"),
        ("[principals.a]\nadmin = ['']", "is no model"),
        ("[principals.a]\nadmin = ['*x']", "is no model"),
        ("[principals.a]\ntokens = ['topwork_secret']", "topwork token"),
        (f"[principals.a]\ntokens = ['{LINE.entry}', '{LINE.entry}']", "twice"),
        ("[principals.a]\ncertificates = ['line-3']", "must begin with one of"),
        (
            "[principals.a]\ncertificates = ['CN:a']\n[principals.b]\ncertificates = ['CN:a']",
            "twice",
        ),
        ("[limits]\ncalls = 0", "must be above 0"),
        ("[principals.a", "at end of document"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, text: str, why: str) -> None:
    """A server does not start with it; no secret is repeated."""
    with pytest.raises(InvalidInput, match="cannot be used") as caught:
        read(tmp_path / "access.toml", text)
    assert why in str(caught.value)
    assert "topwork_secret" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """It does not let everybody in."""
    with pytest.raises(InvalidInput, match="No such file"):
        asyncio.run(Access(tmp_path / "access.toml").start())


def test_limits_are_the_principals_or_those_of_all(tmp_path: Path) -> None:
    """Without limits of its own a principal has the file's."""
    entry = tokens.make()
    text = (
        f"limits.calls = 9\n[principals.a]\ntokens = ['{LINE.entry}']\n"
        f"[principals.b]\ntokens = ['{entry.entry}']\nlimits.images = 5\n"
    )
    access = read(tmp_path / "access.toml", text)
    a = ask(access, authorization=f"Bearer {LINE.token}").principal.allowance.limits
    b = ask(access, authorization=f"Bearer {entry.token}").principal.allowance.limits
    assert (a.calls, a.images) == (9, None)
    assert (b.calls, b.images) == (None, 5)
