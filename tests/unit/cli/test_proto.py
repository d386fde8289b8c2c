"""Files that `topwork proto` writes."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from topwork.cli.proto import proto

PROTO = Path(__file__).parents[3] / "proto"


def test_proto_writes_files_that_compile(tmp_path: Path) -> None:
    """All files compile with the directory as the only include path, error details included."""
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools has no wheel here")
    done = CliRunner().invoke(proto, [str(tmp_path / "protos")])
    assert done.exit_code == 0
    names = [str(path.relative_to(tmp_path / "protos")) for path in tmp_path.rglob("*.proto")]
    assert f"{len(names)} files" in done.output
    image, well_known = tmp_path / "image", resources.files("grpc_tools") / "_proto"
    flags = [f"-I{tmp_path / 'protos'}", f"-I{well_known}", f"--descriptor_set_out={image}"]
    assert protoc.main(["protoc", *flags, *names]) == 0
    messages = {
        f"{file.package}.{message.name}"
        for file in FileDescriptorSet.FromString(image.read_bytes()).file
        for message in file.message_type
    }
    assert {
        "topwork.v1.ClassifyRequest",
        "inference.ModelInferRequest",
        "google.rpc.ErrorInfo",
        "google.longrunning.WaitOperationRequest",
    } <= messages


def test_proto_writes_copies_of_the_sources(tmp_path: Path) -> None:
    """The files of this API are byte for byte those of proto/, with comments."""
    CliRunner().invoke(proto, [str(tmp_path)])
    ours = sorted(PROTO.glob("topwork/**/*.proto"))
    assert len(ours) == len(list(tmp_path.glob("topwork/**/*.proto"))) > 4
    for path in ours:
        assert (tmp_path / path.relative_to(PROTO)).read_bytes() == path.read_bytes()
