"""Peer: a naive server; blocking grpcio with ten threads, ONNX Runtime with its defaults.

python grpc_threads.py MODEL_DIRECTORY PORT CORES
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from benchmarks.bare import Bare


def main() -> None:
    """Serve until killed."""
    model = Bare(Path(sys.argv[1]), threads=None)

    def classify(photo: bytes, _: object) -> bytes:
        return model.answer(photo)

    server = grpc.server(ThreadPoolExecutor(10))
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(classify)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("Peer", {"Classify": handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{sys.argv[2]}")
    server.start()
    server.wait_for_termination()


main()
