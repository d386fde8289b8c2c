"""Command line of the fuzzer: ``python -m fuzz``.

Without a target it runs all, each in its own process, since atheris ends the process. A failing
input is stored in the temporary directory; with --corpus inputs of interest are stored there.
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
    """Read argv and fuzz."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--corpus", type=Path, help="directory that stores inputs; default: none")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help="run a target on this file only")
    options = parser.parse_args()
    if options.one:
        _search(options.one, options.seconds, options.corpus)
        return
    from fuzz.targets import TARGETS

    if options.input:
        (target,) = options.target
        TARGETS[target].run(options.input.read_bytes())
        return
    failed = []
    for name in options.target or TARGETS:
        with tempfile.TemporaryDirectory(prefix="topwork-corpus-") as temporary:
            corpus = (options.corpus or Path(temporary)) / name
            command = [sys.executable, "-m", "fuzz", "--one", name]
            command += ["--seconds", str(options.seconds), "--corpus", str(corpus)]
            print(f"{name}: {options.seconds} s", flush=True)
            if subprocess.run(command, check=False).returncode:
                failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "no failures")
    sys.exit(bool(failed))


def _search(name: str, seconds: int, corpus: Path) -> None:
    """Fuzz one target; ends the process."""
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
