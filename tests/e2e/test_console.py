"""The console in headless Chromium: a model of four labels learns a fifth."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from support import browsers, servers, tiny
from support.pictures import picture

from topwork.access import tokens

DRIVER = Path(__file__).parents[1] / "support" / "console.mjs"
PACKAGES = (browsers.PLAYWRIGHT, "axe-core@4.14.1")
ATTACK = '<img src=x onerror="window.hacked=1">'
FORMULA = f'=1+1,"x"{ATTACK}'
ROLES = ("classify", "train", "admin")


def fill(folder: Path, colour: str, count: int, *, first: int = 100, name: str = "") -> Path:
    """Make a folder of pictures of a colour."""
    folder.mkdir(parents=True)
    for number in range(first, first + count):
        (folder / f"{name or colour}-{number}.png").write_bytes(picture(colour, number))
    return folder


@browsers.needs_browser
def test_console_tells_the_story(tmp_path: Path) -> None:
    """All tasks work on a phone's screen, by each role, with hostile names, without violations."""
    browsers.install(tmp_path, *PACKAGES)
    made = {role: tokens.make() for role in ROLES}
    access = tmp_path / "access.toml"
    access.write_text(
        "".join(
            f"[principals.{role}]\ntokens = ['{token.entry}']\n{role} = ['colours', 'earlier']\n"
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
    # Without examples.npz, as earlier releases published.
    tiny.publish_copy(repository, repository.manifest("colours", 1), model="earlier")
    repository.set_serving("earlier", 1, why="fit")
    with servers.running(repository.root, access=str(access), http_port="127.0.0.1:0") as server:
        given = {
            "tokens": {role: token.token for role, token in made.items()},
            "folders": {
                "violet": str(fill(photos / "violet", "violet", 12, name=FORMULA)),
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
    everything = ["Classify", "Teach", "Examples", "Report", "Revisions", "Operations"]
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
    check_report(found)
    assert found["html"] == repository.report(repository.manifest("colours", 6)).decode()
    assert found["revisions"][0].startswith("Revision 6")
    assert found["revisions"][-1] == "Revision 1"
    assert found["rolledBack"] == "Revision 1servespinned"
    assert "add classes: " in "".join(found["operations"])


def check_report(found: dict[str, Any]) -> None:
    """Check what the page Report showed and saved, and the comparison of two revisions."""
    assert found["cell"] == ["blue predicted as violet", 1]
    assert found["returned"] == "1 photo of blue predicted as violet"
    assert found["near"] == ["The photo, and those around it", 12]
    assert found["walked"] != found["walkedFurther"]
    assert "Recall (sensitivity)" in found["threshold"]
    assert "9 of 9" in found["threshold"]
    assert found["slid"] == "0.51"
    head, *rows = csv.reader(io.StringIO(found["csv"].removeprefix("\ufeff"), newline=""))
    assert head[:3] == ["name", "digest", "label"]
    assert len(rows) == found["listed"]
    (moved,) = (row for row in rows if (row[2], row[4]) == ("blue", "violet"))
    assert moved[0].startswith(f"'{FORMULA}-1")
    assert found["missing"].startswith("An earlier release made revision 1")
    assert found["retrained"] == "2 (serves)"
    assert found["compared"] == "Revisions 6 and 2, each on its own images"
