"""Mutation testing of the packages that serve, change and protect models. Run by ``make mutate``.

Cosmic Ray makes mutants, small faults such as ``<`` for ``<=``. Each is applied to a copy of the
tree, and the tests of its package must fail. The mutation score is the share that they find.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import apply_mutation

ROOT = Path(__file__).parents[1]
SOURCE = Path("service/topwork")

TESTS = {
    "access": ["tests/unit/access", "tests/contract/test_access.py"],
    "changes": ["tests/unit/changes", "tests/unit/rpc/convert"],
    "serving": ["tests/unit/serving"],
}
"""Tests of each package; a module's own test file runs before them."""

PROCESSES = {
    "changes": ["tests/integration/test_changes.py", "tests/integration/test_add_class.py"]
}
"""More tests, for modules without a test file of their own, which server and worker run."""

IGNORED = "BitOr"
"""Operators to leave out: almost all ``|`` are in types, which are not evaluated."""

PATIENCE = 5.0
"""Raising it lets tests of a fault take longer: a factor of their duration without faults."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A mutant: a small fault at one place in a module."""

    module: Path
    operator: str
    occurrence: int
    line: int

    def tests(self) -> list[str]:
        """Return the tests that should find the fault, those of the module itself first."""
        inside = self.module.relative_to(SOURCE)
        own = Path("tests/unit", inside.parent, f"test_{inside.name}")
        package = inside.parts[0]
        if (ROOT / own).exists():
            return [str(own), *TESTS[package]]
        return [*TESTS[package], *PROCESSES.get(package, ())]


def main() -> None:
    """Print the faults that the tests do not find, and the score of each package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", type=Path, help="interpreter that has the project's packages")
    parser.add_argument("packages", nargs="*", default=list(TESTS), help=", ".join(TESTS))
    parser.add_argument(
        "--sample", type=int, default=100, help="number of faults per package; 0: all"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the sample")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="number of parallel test runs"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        copies: SimpleQueue[Path] = SimpleQueue()
        for job in range(args.jobs):
            copies.put(_copy(Path(directory, str(job))))
        for package in args.packages:
            _score(package, args, copies)


def _score(package: str, args: argparse.Namespace, copies: SimpleQueue[Path]) -> None:
    faults = sorted(_faults(package), key=lambda fault: (fault.module, fault.line, fault.operator))
    total = len(faults)
    if args.sample:
        faults = random.Random(args.seed).sample(faults, min(args.sample, total))  # noqa: S311
    limit = PATIENCE * _seconds_without_faults(package, args, copies)

    def find(fault: Fault) -> tuple[Fault, bool, str]:
        copy = copies.get()
        try:
            return fault, *_is_found(fault, copy, args.python.absolute(), limit)
        finally:
            copies.put(copy)

    found = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for done in as_completed([pool.submit(find, fault) for fault in faults]):
            fault, is_found, code = done.result()
            found += is_found
            if not is_found:
                print(f"{fault.module}:{fault.line} {fault.operator}: {code}", flush=True)
    share = f"{found} of {len(faults)} ({found / len(faults):.0%})"
    print(f"{package}: {share} faults found; the sample is of {total}")


def _faults(package: str) -> Iterator[Fault]:
    names = [name for name in cosmic_ray.plugins.operator_names() if IGNORED not in name]
    kinds = {name: cosmic_ray.plugins.get_operator(name) for name in names}
    for path in sorted((ROOT / SOURCE / package).rglob("*.py")):
        nodes = list(ast_nodes(get_ast_from_path(path)))
        for name, kind in kinds.items():
            if kind.arguments():
                continue
            places = [place for node in nodes for place in kind().mutation_positions(node)]
            for occurrence, ((line, _), _) in enumerate(places):
                yield Fault(path.relative_to(ROOT), name, occurrence, line)


def _copy(target: Path) -> Path:
    """Copy the files that git tracks or would add to ``target``, and return it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, target / name)
    return target


def _seconds_without_faults(
    package: str, args: argparse.Namespace, copies: SimpleQueue[Path]
) -> float:
    copy = copies.get()
    start = time.monotonic()
    if not _passes(TESTS[package], copy, args.python.absolute(), None):
        raise SystemExit(f"the tests of {package} fail without any fault")
    copies.put(copy)
    return time.monotonic() - start


def _is_found(fault: Fault, copy: Path, python: Path, limit: float) -> tuple[bool, str]:
    """Return True if the tests fail, and the line with the fault."""
    path = copy / fault.module
    original = path.read_text()
    try:
        apply_mutation(path, cosmic_ray.plugins.get_operator(fault.operator)(), fault.occurrence)
        code = path.read_text().splitlines()[fault.line - 1].strip()
        return not _passes(fault.tests(), copy, python, limit), code
    finally:
        path.write_text(original)


def _passes(tests: list[str], copy: Path, python: Path, limit: float | None) -> bool:
    sources = [str(copy / folder) for folder in ("service", "trainer", "tests")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sources),
        "PYTHONDONTWRITEBYTECODE": "1",  # faults of equal second and length would share bytecode
    }
    command = [str(python), "-m", "pytest", "-qx", "-p", "no:cacheprovider", *tests]
    silent = subprocess.DEVNULL
    process = subprocess.Popen(
        command, cwd=copy, env=environment, stdout=silent, stderr=silent, start_new_session=True
    )
    try:
        return process.wait(limit) == 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # and the servers that the tests started
        process.wait()
        return False


if __name__ == "__main__":
    main()
