"""What the access file says of a call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from topwork.access import tokens
from topwork.access.access_file import Access, Shown
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
    return access.caller(role, metadata, lambda: shown or {}, "ipv4:127.0.0.1:1")


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
    ids=range(7),
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
    a = ask(access, authorization=f"Bearer {LINE.token}").principal.limiter.limits
    b = ask(access, authorization=f"Bearer {entry.token}").principal.limiter.limits
    assert (a.calls, a.images) == (9, None)
    assert (b.calls, b.images) == (None, 5)


def again(access: Access, path: Path, text: str) -> None:
    """Let a file be read again with another text."""
    path.write_text(text)
    access._take(access._read(path))


def limited(limits: str, name: str = "a") -> str:
    """Return a file with one principal."""
    tail = f"limits = {{ {limits} }}\n" if limits else ""
    return f"[principals.{name}]\ntokens = ['{LINE.entry}']\nclassify = ['*']\n{tail}"


@pytest.mark.parametrize("limits", ["calls_per_second = 0.001", "calls_per_second = 0.002"])
def test_a_spent_allowance_stays_spent(tmp_path: Path, limits: str) -> None:
    """Whether its limits change or not, a file that is read again gives no call back."""
    path = tmp_path / "access.toml"
    access = read(path, limited("calls_per_second = 0.001"))
    ask(access, authorization=f"Bearer {LINE.token}").principal.limiter.begin()
    again(access, path, limited(limits))
    with pytest.raises(Overloaded) as caught:
        ask(access, authorization=f"Bearer {LINE.token}").principal.limiter.begin()
    assert caught.value.reason == "RATE_LIMIT"


def test_other_limits_count_for_calls_that_go_on(tmp_path: Path) -> None:
    """What is in the server counts against them, and is given back to them."""
    path = tmp_path / "access.toml"
    access = read(path, limited("calls = 1"))
    first = ask(access, authorization=f"Bearer {LINE.token}").principal.limiter
    first.begin()
    again(access, path, limited("calls = 2"))
    second = ask(access, authorization=f"Bearer {LINE.token}").principal.limiter
    second.begin()
    with pytest.raises(Overloaded, match="2 of your calls are in the server; the limit is 2"):
        second.begin()
    first.end()
    second.begin()
    again(access, path, limited(""))
    second.begin()


def test_a_file_that_cannot_be_used_changes_no_limit(tmp_path: Path) -> None:
    """What was read of it before the mistake does not count either."""
    path = tmp_path / "access.toml"
    access = read(path, limited("calls = 1"))
    with pytest.raises(InvalidInput):
        again(access, path, limited("calls = 5") + "[principals.b]\nadmin = ['*x']\n")
    limits = ask(access, authorization=f"Bearer {LINE.token}").principal.limiter.limits
    assert limits.calls == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        limited("").replace(LINE.entry, tokens.make().entry),
        limited("", name="b"),
    ],
)
def test_a_call_in_progress_is_nobodys_without_its_token(tmp_path: Path, text: str) -> None:
    """Its principal gone, its token alone gone, or handed to another: it may do no more."""
    path = tmp_path / "access.toml"
    access = read(path, limited(""))
    caller = ask(access, authorization=f"Bearer {LINE.token}")
    caller.check("screws")
    again(access, path, text)
    for look in (caller.check_role, lambda: caller.check("screws")):
        with pytest.raises(Unauthenticated) as caught:
            look()
        assert caught.value.reason == "CREDENTIALS_UNKNOWN"


def test_a_call_in_progress_is_nobodys_without_its_certificate(tmp_path: Path) -> None:
    """The same for certificates; a role that is withdrawn is Forbidden."""
    path = tmp_path / "access.toml"
    access = read(path)
    shown = {"x509_common_name": [b"line-3"]}
    caller = ask(access, shown=shown)
    again(access, path, FILE.replace('classify = ["screws", "nuts-*"]', ""))
    with pytest.raises(Forbidden):
        caller.check("screws")
    again(access, path, FILE.replace("CN:line-3", "CN:line-4"))
    with pytest.raises(Unauthenticated):
        caller.check("nuts-7")


def test_callers_share_by_name_or_by_host(access: Access) -> None:
    """A principal's calls have one share wherever they come from; else it is their host's."""
    line = ask(access, authorization=f"Bearer {LINE.token}")
    assert line.share == ask(access, shown={"x509_common_name": [b"line-3"]}).share == "line-3"
    peers = {
        "ipv4:10.0.0.7:4711": "ipv4:10.0.0.7",
        "ipv6:%5Bfe80::1%5D:4711": "ipv6:%5Bfe80::1%5D",
        "unix:": "unix",
    }
    everybody = Access(None)
    assert [everybody.caller("classify", (), dict, peer).share for peer in peers] == [
        *peers.values()
    ]
