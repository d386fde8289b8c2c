"""``python -m fuzz``: search each target for a while for what breaks it.

Without a target it runs all, each in a process of its own, since a search ends with its process. An
input that breaks one is left in the directory that is named; so is, with --corpus, what was found.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Read argv and search."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--corpus", type=Path, help="where inputs are kept; default: nowhere")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help="run one target on this file alone")
    given = parser.parse_args()
    if given.one:
        _search(given.one, given.seconds, given.corpus)
        return
    from fuzz.targets import TARGETS

    if given.input:
        (target,) = given.target
        TARGETS[target].run(given.input.read_bytes())
        return
    failed = []
    for name in given.target or TARGETS:
        with tempfile.TemporaryDirectory(prefix="topwork-corpus-") as temporary:
            corpus = (given.corpus or Path(temporary)) / name
            command = [sys.executable, "-m", "fuzz", "--one", name]
            command += ["--seconds", str(given.seconds), "--corpus", str(corpus)]
            print(f"{name}: {given.seconds} s", flush=True)
            if subprocess.run(command, check=False).returncode:
                failed.append(name)
    print(f"broken: {', '.join(failed)}" if failed else "nothing broke")
    sys.exit(bool(failed))


def _search(name: str, seconds: int, corpus: Path) -> None:
    """Search one target; ends the process."""
    import atheris
    import structlog

    logging.disable(logging.WARNING)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with atheris.instrument_imports(include=["topwork", "PIL", "pydicom"]):
        from fuzz.targets import TARGETS
    target = TARGETS[name]
    seeds = corpus / "seeds"
    seeds.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (seeds / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed[: target.longest])
    options = {
        "max_total_time": seconds,
        "max_len": target.longest,
        "timeout": 20,
        "rss_limit_mb": 4096,
        "print_final_stats": 1,
        "verbosity": 0,
        "artifact_prefix": f"{Path(tempfile.gettempdir())}/topwork-fuzz-{name}-",
    }
    atheris.Setup(
        [name, *(f"-{key}={value}" for key, value in options.items()), str(corpus), str(seeds)],
        target.run,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
