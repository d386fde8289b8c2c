"""The .proto files that `topwork proto` writes."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from topwork.cli.proto import proto

PROTO = Path(__file__).parents[3] / "proto"


def test_proto_writes_all_that_protoc_needs(tmp_path: Path) -> None:
    """With the directory as the only include path all files compile, error details among them."""
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


def test_proto_writes_the_contract_as_it_is(tmp_path: Path) -> None:
    """Ours are those of proto/, comments and all."""
    CliRunner().invoke(proto, [str(tmp_path)])
    ours = sorted(PROTO.glob("topwork/**/*.proto"))
    assert len(ours) == len(list(tmp_path.glob("topwork/**/*.proto"))) > 4
    for path in ours:
        assert (tmp_path / path.relative_to(PROTO)).read_bytes() == path.read_bytes()
