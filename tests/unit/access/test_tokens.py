"""Tokens: generation, and verification against stored digests."""

from __future__ import annotations

import pytest

from topwork.access import tokens


def test_owner_is_found_by_entry_without_secret() -> None:
    """The stored entry contains neither token nor secret, and identifies the owner."""
    new, other = tokens.make(), tokens.make()
    identifier, digest = tokens.parse(new.entry)
    table = tokens.TokenTable({identifier: (digest, "line-3")})
    assert table.owner(new.token) == "line-3"
    assert new.token.rpartition("_")[2] not in new.entry
    assert new.token not in repr(new)
    assert table.owner(other.token) is None


@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t + "x", lambda t: t.upper()])
def test_altered_token_has_no_owner(change: object) -> None:
    """A valid id with another secret is not enough."""
    new = tokens.make()
    identifier, digest = tokens.parse(new.entry)
    table = tokens.TokenTable({identifier: (digest, "line-3")})
    assert callable(change)
    assert table.owner(change(new.token)) is None


@pytest.mark.parametrize("token", ["", "_", "topwork", "topwork_", "topwork__", "ü_é_ñ"])
def test_malformed_token_has_no_owner(token: str) -> None:
    """Any text may be looked up."""
    assert tokens.TokenTable[str]({}).owner(token) is None


@pytest.mark.parametrize("entry", ["", "abc", "0123456789ab:", "0123456789ab:" + "g" * 64])
def test_malformed_entry_is_refused_without_its_text(entry: str) -> None:
    """The entry may be the token itself by mistake, so the error does not repeat it."""
    with pytest.raises(ValueError, match="topwork token") as caught:
        tokens.parse(entry)
    assert not entry or entry not in str(caught.value)
