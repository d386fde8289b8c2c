"""``make audit``: known vulnerabilities and licences of installed packages.

Exit status 1 if a package has a known vulnerability. If no advisory service answers, that is
reported and is not a failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SECONDS = 600
"""Time limit of the advisory service."""


def main(tools: Path, python: Path, output: Path) -> int:
    """Audit ``python``'s environment with the programs in ``tools``; return the exit status."""
    output.mkdir(parents=True, exist_ok=True)
    licences = output / "licences.md"
    command: list[str | Path] = [
        tools / "pip-licenses",
        "--python",
        python,
        "--format=markdown",
        "--with-urls",
    ]
    licences.write_bytes(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    print(f"licences: {licences}")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    audit: list[str | Path] = [
        tools / "pip-audit",
        "--path",
        found.stdout.strip(),
        "--skip-editable",
    ]
    audit += ["--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(audit, capture_output=True, text=True, check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        print(f"nothing was audited: no advisory service answered within {SECONDS} s")
        return 0
    status, text = verdict(done.stdout, done.stderr)
    print(text)
    return status


def verdict(report: str, errors: str) -> tuple[int, str]:
    """Return exit status and text for pip-audit's report, JSON, and its errors."""
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (errors.strip().splitlines() or ["no output"])[-1]
        return 0, f"nothing was audited: no advisory service answered ({last[:200]})"
    audited = [package for package in packages if "vulns" in package]
    if not audited:
        return 0, f"nothing was audited: no advisory service knows the {len(packages)} packages"
    lines = [
        f"{package['name']} {package['version']}: {known['id']}, fixed in "
        f"{', '.join(known.get('fix_versions', [])) or 'no version'}"
        for package in audited
        for known in package["vulns"]
    ]
    left = len(packages) - len(audited)
    lines.append(
        f"{len(lines)} known vulnerabilities in {len(audited)} packages; {left} are not known to "
        "the advisory service"
    )
    return int(len(lines) > 1), "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
