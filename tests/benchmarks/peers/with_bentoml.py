"""Peer: BentoML, a worker process for each core; a photo is the body of a request.

python with_bentoml.py MODEL_DIRECTORY PORT CORES
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml  # type: ignore[import-not-found]  # in the peer's environment
from benchmarks.bare import Bare
from bentoml.validators import ContentType  # type: ignore[import-not-found]  # as above


@bentoml.service(workers=int(os.environ.get("CORES", "1")))
class Photos:
    """Photo in, JSON out."""

    def __init__(self) -> None:
        self._model = Bare(Path(os.environ["MODEL_DIRECTORY"]), threads=1)

    @bentoml.api  # type: ignore[untyped-decorator]  # as above
    def classify(self, photo: Annotated[Path, ContentType("image/jpeg")], /) -> list[list[float]]:
        """Classify one photo, which BentoML passes as a file."""
        return self._model.top5(photo.read_bytes())


if __name__ == "__main__":
    os.environ |= {"MODEL_DIRECTORY": sys.argv[1], "CORES": sys.argv[3]}
    os.chdir(Path(__file__).parent)
    serve = ["-m", "bentoml", "serve", "with_bentoml:Photos", "--host", "127.0.0.1"]
    os.execv(sys.executable, [sys.executable, *serve, "--port", sys.argv[2]])  # noqa: S606 - a list, no shell
