"""Access file: authentication, roles, limits and hot reload."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from topwork.access import tokens
from topwork.access.access_file import Access, AuthContext
from topwork.access.principals import Caller, Role
from topwork.errors import Forbidden, InvalidInput, Overloaded, Unauthenticated

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
    """Return the access of a file."""

    async def start() -> Access:
        access = Access(path)
        await access.start()
        await access.aclose()
        return access

    path.write_text(text)
    return asyncio.run(start())


@pytest.fixture
def access(tmp_path: Path) -> Access:
    """Return the access of FILE."""
    return read(tmp_path / "access.toml")


def caller_of(
    access: Access,
    role: Role = "classify",
    *,
    authorization: str | None = None,
    auth_context: AuthContext | None = None,
) -> Caller:
    """Return the caller of an rpc with these credentials."""
    metadata: Sequence[tuple[str, str | bytes]] = [("user-agent", "test")]
    if authorization is not None:
        metadata = [*metadata, ("authorization", authorization)]
    return access.caller(role, metadata, lambda: auth_context or {}, "ipv4:127.0.0.1:1")


def test_without_access_file_every_call_is_allowed() -> None:
    """No credentials are needed; a certificate's common name is the principal in the audit log."""
    caller = caller_of(Access(None), "admin")
    caller.check_role()
    caller.check("any")
    assert not caller.principal.name
    named = caller_of(Access(None), "admin", auth_context={"x509_common_name": [b"line-3"]})
    assert named.principal.name == "line-3"
    named.check("any")


def test_access_refuses_every_call_before_file_is_read(tmp_path: Path) -> None:
    """Authentication fails until ``start`` has read the file."""
    with pytest.raises(Unauthenticated):
        caller_of(Access(tmp_path / "access.toml"))


@pytest.mark.parametrize(
    ("auth_context", "name"),
    [
        ({"peer_uri": [b"spiffe://factory/line-3"]}, "line-3"),
        ({"x509_common_name": [b"line-3"]}, "line-3"),
        ({"peer_dns": [b"a.factory", b"operator.factory"]}, "operator"),
        ({"peer_dns": [b"operator.factory"], "x509_common_name": [b"line-3"]}, "operator"),
    ],
)
def test_certificate_identifies_principal(
    access: Access, auth_context: AuthContext, name: str
) -> None:
    """The first known of URI, DNS name and common name decides."""
    assert caller_of(access, auth_context=auth_context).principal.name == name


def test_token_takes_precedence_over_certificate(access: Access) -> None:
    """The certificate may be a proxy's; with an unknown token it does not help either."""
    operator: AuthContext = {"peer_dns": [b"operator.factory"]}
    caller = caller_of(access, authorization=f"Bearer {LINE.token}", auth_context=operator)
    assert caller.principal.name == "line-3"
    with pytest.raises(Unauthenticated):
        caller_of(access, authorization="Bearer topwork_1_2", auth_context=operator)


@pytest.mark.parametrize(
    ("authorization", "auth_context", "reason"),
    [
        (None, {}, "CREDENTIALS_MISSING"),
        (LINE.token, {}, "CREDENTIALS_MISSING"),
        (f"Basic {LINE.token}", {}, "CREDENTIALS_MISSING"),
        ("Bearer ", {}, "CREDENTIALS_UNKNOWN"),
        (f"Bearer {tokens.make().token}", {}, "CREDENTIALS_UNKNOWN"),
        (None, {"x509_common_name": [b"unknown"]}, "CREDENTIALS_UNKNOWN"),
        (None, {"peer_dns": [b"line-3"]}, "CREDENTIALS_UNKNOWN"),
    ],
    ids=range(7),
)
def test_missing_or_unknown_credentials_are_refused(
    access: Access, authorization: str | None, auth_context: AuthContext, reason: str
) -> None:
    """The error has the reason, and does not repeat the token."""
    with pytest.raises(Unauthenticated) as caught:
        caller_of(access, authorization=authorization, auth_context=auth_context)
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
def test_role_covers_its_models(access: Access, role: Role, model: str, allowed: bool) -> None:
    """A pattern is a full name or a prefix with a star; a role includes the lower roles."""
    caller = caller_of(access, role, authorization=f"Bearer {LINE.token}")
    if allowed:
        caller.check(model)
    else:
        with pytest.raises(Forbidden) as caught:
            caller.check(model)
        assert caught.value.reason == "MODEL_FORBIDDEN"


def test_check_role_refuses_principal_without_models(access: Access) -> None:
    """A principal that has the role for no model is refused before a request is read."""
    with pytest.raises(Forbidden, match="has role 'admin' for no model"):
        caller_of(access, "admin", authorization=f"Bearer {LINE.token}").check_role()
    with pytest.raises(Forbidden):
        caller_of(access, auth_context={"x509_common_name": [b"nobody"]}).check_role()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("principals = 3", "Expected `object`"),
        ("[principals.a]\nadmn = ['*']", "unknown field `admn`"),
        ("[principals.a]\nadmin = ['a/b']", "is neither a model"),
        ("[principals.a]\nadmin = ['']", "is neither a model"),
        ("[principals.a]\nadmin = ['*x']", "is neither a model"),
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
def test_unusable_file_is_refused_at_start(tmp_path: Path, text: str, why: str) -> None:
    """The error has the cause, and repeats no secret."""
    with pytest.raises(InvalidInput, match="cannot be used") as caught:
        read(tmp_path / "access.toml", text)
    assert why in str(caught.value)
    assert "topwork_secret" not in str(caught.value)


def test_missing_file_is_refused_at_start(tmp_path: Path) -> None:
    """A missing file does not disable authentication."""
    with pytest.raises(InvalidInput, match="No such file"):
        asyncio.run(Access(tmp_path / "access.toml").start())


def test_principal_without_limits_has_the_files(tmp_path: Path) -> None:
    """A principal's own limits replace the file's limits as a whole."""
    entry = tokens.make()
    text = (
        f"limits.calls = 9\n[principals.a]\ntokens = ['{LINE.entry}']\n"
        f"[principals.b]\ntokens = ['{entry.entry}']\nlimits.images = 5\n"
    )
    access = read(tmp_path / "access.toml", text)
    a = caller_of(access, authorization=f"Bearer {LINE.token}").principal.limiter.limits
    b = caller_of(access, authorization=f"Bearer {entry.token}").principal.limiter.limits
    assert (a.calls, a.images) == (9, None)
    assert (b.calls, b.images) == (None, 5)


def reload(access: Access, path: Path, text: str) -> None:
    """Replace the file's text and reload it."""
    path.write_text(text)
    access._apply(access._read(path))


def limited(limits: str, name: str = "a") -> str:
    """Return the text of a file with one principal."""
    tail = f"limits = {{ {limits} }}\n" if limits else ""
    return f"[principals.{name}]\ntokens = ['{LINE.entry}']\nclassify = ['*']\n{tail}"


@pytest.mark.parametrize("limits", ["calls_per_second = 0.001", "calls_per_second = 0.002"])
def test_reload_keeps_used_rate_limit(tmp_path: Path, limits: str) -> None:
    """Reloading the file refills no rate limit, whether the limits change or not."""
    path = tmp_path / "access.toml"
    access = read(path, limited("calls_per_second = 0.001"))
    caller_of(access, authorization=f"Bearer {LINE.token}").principal.limiter.begin()
    reload(access, path, limited(limits))
    with pytest.raises(Overloaded) as caught:
        caller_of(access, authorization=f"Bearer {LINE.token}").principal.limiter.begin()
    assert caught.value.reason == "RATE_LIMIT"


def test_reloaded_limits_include_calls_in_progress(tmp_path: Path) -> None:
    """Calls that began before the reload count against the new limits until they end."""
    path = tmp_path / "access.toml"
    access = read(path, limited("calls = 1"))
    first = caller_of(access, authorization=f"Bearer {LINE.token}").principal.limiter
    first.begin()
    reload(access, path, limited("calls = 2"))
    second = caller_of(access, authorization=f"Bearer {LINE.token}").principal.limiter
    second.begin()
    with pytest.raises(Overloaded, match="2 of your calls are in progress; the limit is 2"):
        second.begin()
    first.end()
    second.begin()
    reload(access, path, limited(""))
    second.begin()


def test_unusable_file_changes_no_limit(tmp_path: Path) -> None:
    """A reload applies the whole file or nothing of it."""
    path = tmp_path / "access.toml"
    access = read(path, limited("calls = 1"))
    with pytest.raises(InvalidInput):
        reload(access, path, limited("calls = 5") + "[principals.b]\nadmin = ['*x']\n")
    limits = caller_of(access, authorization=f"Bearer {LINE.token}").principal.limiter.limits
    assert limits.calls == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        limited("").replace(LINE.entry, tokens.make().entry),
        limited("", name="b"),
    ],
)
def test_call_in_progress_is_refused_after_token_is_revoked(tmp_path: Path, text: str) -> None:
    """The principal was deleted, the token was deleted, or moved to another principal."""
    path = tmp_path / "access.toml"
    access = read(path, limited(""))
    caller = caller_of(access, authorization=f"Bearer {LINE.token}")
    caller.check("screws")
    reload(access, path, text)
    for check in (caller.check_role, lambda: caller.check("screws")):
        with pytest.raises(Unauthenticated) as caught:
            check()
        assert caught.value.reason == "CREDENTIALS_UNKNOWN"


def test_call_in_progress_is_refused_after_certificate_is_revoked(tmp_path: Path) -> None:
    """A deleted certificate is Unauthenticated; a deleted role is Forbidden."""
    path = tmp_path / "access.toml"
    access = read(path)
    auth_context = {"x509_common_name": [b"line-3"]}
    caller = caller_of(access, auth_context=auth_context)
    reload(access, path, FILE.replace('classify = ["screws", "nuts-*"]', ""))
    with pytest.raises(Forbidden):
        caller.check("screws")
    reload(access, path, FILE.replace("CN:line-3", "CN:line-4"))
    with pytest.raises(Unauthenticated):
        caller.check("nuts-7")


def test_share_is_the_principals_or_the_hosts(access: Access) -> None:
    """A principal's calls from all hosts have one share; anonymous calls share by host."""
    line = caller_of(access, authorization=f"Bearer {LINE.token}")
    assert (
        line.share
        == caller_of(access, auth_context={"x509_common_name": [b"line-3"]}).share
        == "line-3"
    )
    peers = {
        "ipv4:10.0.0.7:4711": "ipv4:10.0.0.7",
        "ipv6:%5Bfe80::1%5D:4711": "ipv6:%5Bfe80::1%5D",
        "unix:": "unix",
    }
    anonymous = Access(None)
    assert [anonymous.caller("classify", (), dict, peer).share for peer in peers] == [
        *peers.values()
    ]
