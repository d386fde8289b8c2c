"""Peer: MLServer over gRPC (Open Inference Protocol), a worker process for each core.

python with_mlserver.py MODEL_DIRECTORY PORT CORES
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from benchmarks.bare import Bare
from mlserver import (  # type: ignore[import-not-found]  # in the peer's environment
    MLModel,
    MLServer,
    ModelSettings,
    Settings,
)
from mlserver.types import (  # type: ignore[import-not-found]  # as above
    InferenceRequest,
    InferenceResponse,
    ResponseOutput,
)


class Classify(MLModel):  # type: ignore[misc]  # untyped here
    """Photo in, JSON out, as BYTES tensors."""

    async def load(self) -> bool:
        """Load the model into a worker."""
        self._model = Bare(Path(self.settings.parameters.uri), threads=1)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Classify one photo."""
        answer = self._model.answer(payload.inputs[0].data[0])
        output = ResponseOutput(name="top5", shape=[1, 1], datatype="BYTES", data=[answer])
        return InferenceResponse(model_name=self.name, outputs=[output])


async def main() -> None:
    """Serve until killed."""
    directory, port, cores = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    settings = Settings(
        host="127.0.0.1",
        grpc_port=port,
        http_port=port + 1,
        metrics_endpoint=None,
        parallel_workers=cores,
        debug=False,
    )
    model = ModelSettings(name="photos", implementation=Classify, parameters={"uri": directory})
    server = MLServer(settings)
    await server.start(models_settings=[model])


if __name__ == "__main__":
    asyncio.run(main())
