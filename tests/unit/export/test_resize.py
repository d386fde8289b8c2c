"""resize.js gives the pixels of topwork.inputs.image, to the last bit."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import resources
from typing import Literal

import numpy as np
import PIL
import pytest
from PIL import Image
from support.pictures import encode

from topwork.inputs.image import preprocess
from topwork.inputs.preprocess import PreprocessSpec

SCRIPT = """
import { readFileSync, writeSync } from "node:fs";
const { plan, scale } = await import(process.argv[1]);
const [width, height, spec] = JSON.parse(process.argv[2]);
const all = readFileSync(0);
const { x, y } = plan(width, height, spec);
const rows = [];
for (let row = y.first; row < y.last; row++) {
  rows.push(all.subarray(4 * (row * width + x.first), 4 * (row * width + x.last)));
}
process.stdout.write(scale(Buffer.concat(rows), { x, y }, spec));
"""

PILLOW_13 = pytest.mark.skipif(
    int(PIL.__version__.partition(".")[0]) < 13, reason="earlier versions round in another order"
)
pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="Node is not installed")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("width", "height", "resize", "crop"),
    [
        pytest.param(64, 37, 24, 24, id="smaller"),
        pytest.param(37, 50, 24, 24, id="smaller, upright"),
        pytest.param(37, 51, 24, 24, id="smaller, tall", marks=PILLOW_13),
        pytest.param(150, 901, 24, 20, id="tall, averaged over squares first", marks=PILLOW_13),
        pytest.param(20, 60, 24, 24, id="larger, tall", marks=PILLOW_13),
        pytest.param(333, 250, 40, 33, id="smaller, cropped"),
        pytest.param(320, 240, 256, 224, id="a little smaller"),
        pytest.param(24, 30, 24, 24, id="same size"),
        pytest.param(13, 11, 48, 40, id="larger"),
        pytest.param(641, 407, 32, 28, id="averaged over squares first"),
        pytest.param(700, 1003, 20, 20, id="averaged over larger squares first"),
        pytest.param(1, 500, 16, 16, id="a line"),
    ],
)
def test_scales_as_the_server(
    width: int,
    height: int,
    resize: int,
    crop: int,
    interpolation: Literal["bilinear", "bicubic"],
) -> None:
    """Noise with black and white extremes becomes the same pixels."""
    spec = PreprocessSpec(resize=resize, crop=crop, interpolation=interpolation)
    noise = np.random.default_rng(width).normal(128, 120, (height, width, 3))
    photo = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    module = resources.files("topwork.export") / "static" / "resize.js"
    fields = {"resize": resize, "crop": crop, "interpolation": interpolation}
    done = subprocess.run(
        [
            *("node", "--input-type=module", "--eval", SCRIPT),
            *(str(module), json.dumps([width, height, fields])),
        ],
        input=photo.convert("RGBA").tobytes(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    found = np.frombuffer(done.stdout, np.uint8).reshape(crop, crop, 3)
    np.testing.assert_array_equal(found, preprocess(encode(photo), spec))
