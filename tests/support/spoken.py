"""Spoken words by Debian's espeak-ng: any word in many voices, which differ like speakers."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

FLOWERS = ("daisy", "dandelion", "rose", "sunflower", "tulip")
"""Words of the story: four, then the fifth."""

VOICES = (
    *("adam", "Alex", "Alicia", "Andrea", "Andy", "anika", "Annie", "antonio", "aunty", "belinda"),
    *("benjamin", "boris", "caleb", "croak", "david", "Denis", "ed", "edward", "f1", "f2", "f3"),
    *("f4", "f5", "grandma", "grandpa", "gustave", "Henrique", "Hugo", "iven", "Jacky", "john"),
    *("klatt", "klatt4", "Lee", "linda", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8"),
    *("marcelo", "Marco", "Mario", "max", "Michael", "michel", "miguel", "pablo", "paul", "pedro"),
    *("quincy", "rob", "robert", "sandro", "shelby", "steph", "travis", "victor", "zac"),
)
"""Variants of an American voice."""

MANNERS = ((150, 50), (180, 35), (210, 60))
"""Words a minute, and pitch."""


def is_installed() -> bool:
    """Return True if the program is on this machine."""
    return shutil.which("espeak-ng") is not None


def record(folder: Path, word: str, voices: tuple[str, ...]) -> list[Path]:
    """Return the WAV files of a word in some voices and all manners, in ``folder``/word."""
    (folder / word).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        return [
            *pool.map(lambda each: _speak(folder / word, word, *each), product(voices, MANNERS))
        ]


def _speak(folder: Path, word: str, voice: str, manner: tuple[int, int]) -> Path:
    speed, pitch = manner
    path = folder / f"{voice}-{speed}.wav"
    options = ["-v", f"en-us+{voice}", "-s", str(speed), "-p", str(pitch), "-w", str(path)]
    subprocess.run(["espeak-ng", *options, word], check=True)  # noqa: S607  # where it is installed
    return path
