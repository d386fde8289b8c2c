"""Build the container images with docker, buildah or podman.

``make image`` runs this file, which needs only Python. The build uses the pip settings of this
machine; they do not become part of an image.
"""

from __future__ import annotations

import argparse
import ast
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
BASE = "debian:bookworm-slim"
SECRETS = "/run/secrets"


def engine() -> list[str]:
    """Return the build command: $TOPWORK_ENGINE, or the first engine that works here."""
    if command := os.environ.get("TOPWORK_ENGINE"):
        return shlex.split(command)
    for name, probe in (("docker", "info"), ("buildah", "version"), ("podman", "info")):
        if shutil.which(name) and _succeeds([name, probe]):
            return [name]
    sys.exit("no engine can build images: install docker, buildah or podman")


def build(target: str, tag: str, arguments: list[str]) -> None:
    """Build the stage ``target`` as ``tag``, with further ``arguments`` of the build command."""
    command = engine()
    settings = _pip_settings()
    folders = _folders(settings)
    flags = ["--target", target, "--tag", tag]
    for name, value in _labels().items():
        flags += ["--label", f"org.opencontainers.image.{name}={value}"]
    if Path(command[0]).name != "docker":
        # The OCI format has no HEALTHCHECK.
        flags += ["--layers", "--format=docker", "--isolation=chroot"]
        flags += [f"--volume={folder}:{folder}:ro" for folder in folders]
        if _succeeds([*command, "inspect", "--type=image", BASE]):
            flags.append("--pull-never" if command[0] == "buildah" else "--pull=never")
    with tempfile.TemporaryDirectory() as directory:
        pip_conf = Path(directory) / "pip.conf"
        pip_conf.write_text("[global]\n" + "".join(f"{k} = {v}\n" for k, v in settings.items()))
        flags += ["--secret", f"id=pip.conf,src={pip_conf}"]
        if certificates := settings.get("cert"):
            pip_conf.write_text(pip_conf.read_text().replace(certificates, f"{SECRETS}/ca.pem"))
            flags += ["--secret", f"id=ca.pem,src={certificates}"]
        _run([*command, "build", *flags, *arguments, str(ROOT)])


def base() -> None:
    """Build the base image from Debian's packages, without a registry; needs root."""
    with tempfile.TemporaryDirectory() as directory:
        _run(["debootstrap", "--variant=minbase", "bookworm", directory])
        for cache in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(Path(directory, cache))
        container = _run(["buildah", "from", "scratch"])
        _run(["buildah", "add", "--quiet", container, directory, "/"])
        _run(["buildah", "config", "--cmd", "bash", container])
        _run(["buildah", "commit", "--quiet", "--rm", container, BASE])


def _labels() -> dict[str, str]:
    """Return the image's labels: version, revision, time."""
    version = (ROOT / "service/topwork/__init__.py").read_text().partition('__version__ = "')[2]
    git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    described = subprocess.run(git, capture_output=True, text=True, check=False)
    return {
        "version": version.partition('"')[0],
        "revision": described.stdout.strip() or "unknown",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _pip_settings() -> dict[str, str]:
    """Return pip's settings of indexes and proxies, from files and from the environment.

    Omits indexes with file: URLs, which the build cannot read.
    """
    pip = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(pip, capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = {}
    # Settings of the environment come last, because they override the others.
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        words = [
            word for word in str(ast.literal_eval(value)).split() if not word.startswith("file:")
        ]
        if words and name in {
            "cert", "default-timeout", "extra-index-url", "find-links", "index-url", "proxy",
            "retries", "timeout", "trusted-host",
        }:  # fmt: skip
            found[name] = " ".join(words)
    return found


def _folders(settings: dict[str, str]) -> list[str]:
    """Return the local folders in which pip finds packages."""
    return [link for link in settings.get("find-links", "").split() if not urlsplit(link).scheme]


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run(command: list[str]) -> str:
    """Print and run a command; return its output. Exit with its status if that is not 0."""
    print(shlex.join(command), file=sys.stderr)
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None, "it is a pipe"
        for line in running.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if running.returncode:
        sys.exit(running.returncode)
    return "".join(lines).strip()


def main() -> None:
    """Build an image or the base image, or print the engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    targets = ("serve", "serve-cuda", "train")
    parser.add_argument(
        "target", choices=[*targets, "base", "engine"], help="engine: only print the build command"
    )
    parser.add_argument("--tag", help="default: topwork:TARGET")
    known, others = parser.parse_known_args()
    if known.target == "base":
        base()
    elif known.target == "engine":
        print(shlex.join(engine()))
    else:
        build(known.target, known.tag or f"topwork:{known.target}", others)


if __name__ == "__main__":
    main()
