"""Classifies inputs of a kind with NVIDIA's tritonclient, over gRPC and HTTP, and prints JSON.

``python tritonclient_kinds.py GRPC HTTP JSON``; JSON is a list of objects with model, tensor,
datatype and values: texts, or rows of numbers. See tritonclient_calls.py.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http


def main(grpc: str, http: str, wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the probabilities of each way, and the metadata of the input."""
    answers = []
    for given in wanted:
        if given["datatype"] == "BYTES":
            values = np.array([text.encode() for text in given["values"]], dtype=np.object_)
        else:
            values = np.array(given["values"], dtype=np.float32)
        model, found = given["model"], {}
        for name, module, address in (
            ("grpc", tritonclient.grpc, grpc),
            ("http", tritonclient.http, http),
            ("json", tritonclient.http, http),
        ):
            client = module.InferenceServerClient(address)
            tensor = module.InferInput(given["tensor"], values.shape, given["datatype"])
            if name == "json":
                tensor.set_data_from_numpy(values, binary_data=False)
            else:
                tensor.set_data_from_numpy(values)
            output = module.InferRequestedOutput("probabilities")
            answer = client.infer(model, [tensor], outputs=[output])
            found[name] = answer.as_numpy("probabilities").tolist()
            client.close()
        client = tritonclient.http.InferenceServerClient(http)
        answers.append({"inputs": client.get_model_metadata(model)["inputs"], **found})
        client.close()
    return answers


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))))  # noqa: T201  # its answer
