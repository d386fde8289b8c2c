"""Peer: a plain grpc.aio server; a thread for each core decodes and runs one image at a time.

python grpc_aio.py MODEL_DIRECTORY PORT CORES
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from benchmarks.bare import Bare


async def main() -> None:
    """Serve until killed."""
    directory, port, cores = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    model, pool = Bare(directory, threads=1), ThreadPoolExecutor(cores)

    async def classify(photo: bytes, _: object) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(pool, model.answer, photo)

    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(classify)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("Peer", {"Classify": handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


asyncio.run(main())
