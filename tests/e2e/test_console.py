"""The console in headless Chromium: a model of four labels learns a fifth."""

from __future__ import annotations

import json
from pathlib import Path

from support import browsers, servers, tiny
from support.pictures import picture

from topwork.access import tokens

DRIVER = Path(__file__).parents[1] / "support" / "console.mjs"
PACKAGES = (browsers.PLAYWRIGHT, "axe-core@4.14.1")
ATTACK = '<img src=x onerror="window.hacked=1">'
ROLES = ("classify", "train", "admin")


def fill(folder: Path, colour: str, count: int, *, first: int = 100) -> Path:
    """Make a folder of pictures of a colour."""
    folder.mkdir(parents=True)
    for number in range(first, first + count):
        (folder / f"{colour}-{number}.png").write_bytes(picture(colour, number))
    return folder


@browsers.needs_browser
def test_console_tells_the_story(tmp_path: Path) -> None:
    """All tasks work on a phone's screen, by each role, with hostile names, without violations."""
    browsers.install(tmp_path, *PACKAGES)
    made = {role: tokens.make() for role in ROLES}
    access = tmp_path / "access.toml"
    access.write_text(
        "".join(
            f"[principals.{role}]\ntokens = ['{token.entry}']\n{role} = ['colours']\n"
            for role, token in made.items()
        )
    )
    photos = tmp_path / "photos"
    fill(photos / "both" / ATTACK, "zircon", 8)
    fill(photos / "both" / "white", "white", 8)
    attack = photos / f"{ATTACK}.png"
    attack.write_bytes(picture("green", 90))
    violet = photos / "violet.png"
    violet.write_bytes(picture("violet", 91))
    repository = tiny.repository(tmp_path / "repository")
    with servers.running(repository.root, access=str(access), http_port="127.0.0.1:0") as server:
        given = {
            "tokens": {role: token.token for role, token in made.items()},
            "folders": {
                "violet": str(fill(photos / "violet", "violet", 12)),
                "sea": str(fill(photos / "sea", "blue", 20, first=0)),
                "both": str(photos / "both"),
            },
            "violet": str(violet),
            "attack": str(attack),
        }
        found = browsers.drive(DRIVER, tmp_path, f"http://{server.http}/", json.dumps(given))
    assert found["problems"] == []
    assert found["hacked"] is None
    assert found["hosts"] == [server.http]
    assert {name: found for name, found in found["violations"].items() if found} == {}
    assert found["wide"] == []

    assert found["before"] == []
    assert found["refused"]
    everything = ["Classify", "Teach", "Examples", "Revisions", "Operations"]
    assert found["admin"] == found["train"]["views"] == everything
    assert found["classify"]["views"] == ["Classify", "Revisions"]
    assert found["train"]["buttons"] == found["classify"]["buttons"] == []

    assert found["attackFile"] == ["green", f"{ATTACK}.png: answered by revision 1."]
    assert found["nearest"] == ["green"] * 5
    assert not found["explained"].startswith("Explaining")
    assert "The gate would let this revision serve." in found["check"]
    assert "violet" in found["check"]
    assert "Revision 2 serves." in found["published"]
    assert found["dropped"] == "violet"
    assert "The gate would reject this revision." in found["rejected"]
    assert "Revision 4 serves." in found["both"]
    assert ATTACK in found["both"]
    assert ATTACK in found["examples"]
    assert found["revisions"][0].startswith("Revision 6")
    assert found["revisions"][-1] == "Revision 1"
    assert found["rolledBack"] == "Revision 1servespinned"
    assert "add classes: " in "".join(found["operations"])
