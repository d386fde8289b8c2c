"""Tokens: made once, kept as digests, known again."""

from __future__ import annotations

import pytest

from topwork.access import tokens


def test_a_token_is_known_by_its_entry_alone() -> None:
    """What is kept has neither token nor secret, and yet tells whose it is."""
    made, other = tokens.make(), tokens.make()
    identifier, digest = tokens.parse(made.entry)
    known = tokens.KnownToken({identifier: (digest, "line-3")})
    assert known.owner(made.token) == "line-3"
    assert made.token.rpartition("_")[2] not in made.entry
    assert made.token not in repr(made)
    assert known.owner(other.token) is None


@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t + "x", lambda t: t.upper()])
def test_a_changed_token_is_nobodys(change: object) -> None:
    """The id alone opens nothing."""
    made = tokens.make()
    identifier, digest = tokens.parse(made.entry)
    known = tokens.KnownToken({identifier: (digest, "line-3")})
    assert callable(change)
    assert known.owner(change(made.token)) is None


@pytest.mark.parametrize("token", ["", "_", "topwork", "topwork_", "topwork__", "ü_é_ñ"])
def test_what_is_no_token_is_nobodys(token: str) -> None:
    """Any text may be asked about."""
    assert tokens.KnownToken[str]({}).owner(token) is None


@pytest.mark.parametrize("entry", ["", "abc", "0123456789ab:", "0123456789ab:" + "g" * 64])
def test_an_entry_that_is_none_is_told_without_its_text(entry: str) -> None:
    """Somebody may have put the token itself there: it is not repeated."""
    with pytest.raises(ValueError, match="topwork token") as caught:
        tokens.parse(entry)
    assert not entry or entry not in str(caught.value)
