"""Lint the contract; generate its Python code, docs/api.md, openapi.json and the blocking client.

``--check`` writes nothing and fails if a generated file is stale. Both fail if the contract is
incompatible with the last release, which proto/released.binpb describes. ``--release`` writes that
file, once per release; never use it to silence a failure.

buf reads a descriptor set that protoc has compiled, because googleapis-common-protos ships
operations.proto under another file name, which buf does not support.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import shutil
import subprocess
import sys
import sysconfig
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

import blocking
import grpc_tools
import openapi
import reference
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

PROTO = Path(__file__).parent
PACKAGES = ("topwork/inference", "topwork/v1")
SCRIPTS = Path(sysconfig.get_path("scripts"))
TARGET = PROTO.parent / "service"
PAGE = PROTO.parent / "docs" / "api.md"
CLIENTS = TARGET / "topwork" / "client"
OPENAPI = TARGET / "topwork" / "gateway" / "openapi.json"
RELEASED = PROTO / "released.binpb"
SOURCES = sorted(
    str(path.relative_to(PROTO)) for name in PACKAGES for path in (PROTO / name).glob("*.proto")
)
MARK = '"""Generated from proto/{} by `make proto`; never edited."""\n'


def compile_protos(work: Path, *outputs: str) -> None:
    """Run protoc on the contract with the flags ``outputs``."""
    shipped = Path(sysconfig.get_path("purelib")) / "google"
    includes = work / "includes" / "google"
    for package in ("api", "rpc", "longrunning"):
        shutil.copytree(shipped / package, includes / package, dirs_exist_ok=True)
    shutil.copy(
        includes / "longrunning" / "operations_proto.proto",
        includes / "longrunning" / "operations.proto",
    )
    well_known = resources.files(grpc_tools) / "_proto"
    command = ["protoc", f"-I{PROTO}", f"-I{includes.parent}", f"-I{well_known}", *outputs]
    if protoc.main(command + SOURCES) != 0:
        sys.exit("protoc failed")


def lint(work: Path) -> FileDescriptorSet:
    """Check the contract with ``buf lint`` and ``buf breaking`` and return it; exit on failure."""
    image = work / "image.binpb"
    compile_protos(
        work, f"--descriptor_set_out={image}", "--include_imports", "--include_source_info"
    )
    paths = [flag for source in SOURCES for flag in ("--path", source)]
    config = ["--config", str(PROTO / "buf.yaml"), *paths]
    for rules in (["lint", str(image)], ["breaking", str(image), "--against", str(RELEASED)]):
        done = subprocess.run([SCRIPTS / "buf", *rules, *config], check=False)
        if done.returncode:
            sys.exit(f"buf {rules[0]} failed")
    return FileDescriptorSet.FromString(image.read_bytes())


def generate(work: Path) -> Path:
    """Generate the Python packages and return their directory."""
    out = work / "out"
    out.mkdir()
    compile_protos(
        work,
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--plugin=protoc-gen-mypy={SCRIPTS / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={SCRIPTS / 'protoc-gen-mypy_grpc'}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
    )
    for name in PACKAGES:
        (out / name / "__init__.py").write_text(MARK.format(name))
    for source in SOURCES:  # for `topwork proto`
        shutil.copy(PROTO / source, out / source)
    return out


def main() -> None:
    """Generate all files, or with ``--check`` fail if that would change a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if a file is stale"
    )
    parser.add_argument("--release", action="store_true", help=f"write only {RELEASED.name}")
    arguments = parser.parse_args()
    with TemporaryDirectory() as directory:
        work = Path(directory)
        if arguments.release:
            compile_protos(work, f"--descriptor_set_out={RELEASED}", "--include_imports")
            return
        contract = lint(work)
        texts = {
            PAGE: reference.page(contract, SOURCES),
            OPENAPI: openapi.Description(contract).text(),
            **{
                CLIENTS / f"{made}.py": blocking.client(name, (CLIENTS / f"{name}.py").read_text())
                for name, made in blocking.MODULES.items()
            },
        }
        fresh = generate(work)
        names = [name for package in PACKAGES for name in _files(fresh, package)]
        if not arguments.check:
            for package in PACKAGES:
                shutil.rmtree(TARGET / package, ignore_errors=True)
                shutil.copytree(fresh / package, TARGET / package)
            for path, text in texts.items():
                path.write_text(text)
            print(json.dumps({"generated": names}))
            return
        present = [name for package in PACKAGES for name in _files(TARGET, package)]
        stale = [
            name
            for name in names
            if name in present and not filecmp.cmp(fresh / name, TARGET / name, shallow=False)
        ]
        stale += sorted(set(names) ^ set(present))
        stale += [
            str(path.relative_to(PROTO.parent))
            for path, text in texts.items()
            if not path.exists() or path.read_text() != text
        ]
        if stale:
            sys.exit(f"stale, run `make proto`: {', '.join(stale)}")


def _files(root: Path, package: str) -> list[str]:
    """Return the paths of a package's files, relative to ``root``."""
    return sorted(str(path.relative_to(root)) for path in (root / package).glob("*.*"))


if __name__ == "__main__":
    main()
