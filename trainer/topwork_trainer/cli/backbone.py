"""Command ``backbone``: adds backbones to a repository."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from topwork import tables
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.names import check_model
from topwork.bundle.store import Repository
from topwork.command_group import example
from topwork.errors import InvalidInput
from topwork.inputs.preprocess import Interpolation
from topwork_trainer import backbones
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.backbones.onnx_graph import Layout
from topwork_trainer.backbones.onnx_import import OnnxSource, import_onnx
from topwork_trainer.backbones.onnx_wrap import Pool
from topwork_trainer.backbones.plans import Rgb
from topwork_trainer.backbones.prepare import prepare_backbone
from topwork_trainer.cli.options import cache_option


class _PerChannel(click.ParamType[Any]):
    """Option type: one number for all channels, or three for red, green and blue."""

    name = "R,G,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Rgb:
        """See click."""
        try:
            numbers = [float(part) for part in value.split(",")]
            red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
        except ValueError:
            self.fail(f"{value!r} is neither one number nor three separated by commas", param, ctx)
        return red, green, blue


@click.group()
def backbone() -> None:
    """Add backbones to a repository."""


@backbone.command(epilog=example("topwork-train backbone add mine --onnx m.onnx --repository r"))
@click.argument("name")
@click.option(
    "--repository",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Repository that stores the backbone under NAME.",
)
@click.option(
    "--onnx",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="ONNX file of an image classifier or feature extractor. The options below describe it.",
)
@click.option(
    "--layout",
    type=click.Choice(get_args(Layout)),
    help="Order of the input's dimensions. Default: found by its shape.",
)
@click.option(
    "--image-size",
    type=click.IntRange(backbones.LEAST_IMAGE_SIZE, backbones.MOST_IMAGE_SIZE),
    help="Side of the input in pixels, if the graph takes any.",
)
@click.option(
    "--range",
    "value_range",
    type=click.Choice([1, 255]),
    help="Largest value of a pixel, before --mean and --std. Default: found if the graph "
    "normalises pixels, otherwise 1.",
)
@click.option(
    "--mean",
    type=_PerChannel(),
    help="Subtracted from each pixel. Default: 0, or ImageNet's if no range is given or found.",
)
@click.option("--std", type=_PerChannel(), help="Divisor after that. Default: 1, or ImageNet's.")
@click.option(
    "--output",
    help="Tensor to use as embedding. Default: the classifier's input, or the only output.",
)
@click.option(
    "--pool",
    type=click.Choice(get_args(Pool)),
    help="Rows to use of a transformer's output: CLS, the mean of the patches, or both.",
)
@click.option(
    "--interpolation",
    default="bicubic",
    type=click.Choice(get_args(Interpolation)),
    help="Filter that scales photos.",
)
@click.option("--licence", default="unknown", help="Licence of the weights.")
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PyTorch state dict to load instead of the published weights; not with --onnx.",
)
@click.option("--replace", "replaces", is_flag=True, help="Take NAME from another backbone.")
@cache_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def add(
    name: str,
    repository: Path,
    file: Path | None,
    weights: Path | None,
    replaces: bool,
    cache: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Store a backbone in a repository, so that models can be made of it there.

    Without --onnx, NAME is a backbone as for fit, which is exported. With --onnx it is a new name
    for the graph in a file, which is checked and completed without torch. In both cases `fit
    --backbone NAME` with the same repository uses it.
    """
    target = Repository(repository)
    notes: tuple[str, ...] = ()
    if file is None:
        _refuse_options_of_onnx()
        choice = replace(backbones.parse(name), weights=weights)
        info = prepare_backbone(target, choice, Exports(cache) if cache else None)
        name = str(choice)
    else:
        if weights is not None:
            raise InvalidInput(
                "an ONNX file has its weights: --weights is not needed", field="weights"
            )
        if check_model(name, field="name") == "auto":
            raise InvalidInput("'auto' is no name, since fit uses it", field="name")
        imported = import_onnx(name, OnnxSource(file=file, **options))
        info = target.put_backbone(imported.onnx, imported.info)
        notes = (*imported.notes, f"{imported.milliseconds:.1f} ms per image on one core")
    target.add_backbone(name, info.digest, replace=replaces)
    if as_json:
        print(json.dumps({"name": name, **_json(info), "notes": notes}))
        return
    console = tables.console()
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{name} is stored as {info.digest[:12]}: input {info.image_spec.crop}, embedding"
        f" {info.width}, {info.precision}, licence {info.licence}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _refuse_options_of_onnx() -> None:
    """Raise InvalidInput if an option is given that describes an ONNX file, without a file."""
    context = click.get_current_context()
    for option in fields(OnnxSource):
        if context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
            flag = option.name.removeprefix("value_").replace("_", "-")
            raise InvalidInput(f"--{flag} needs --onnx", field=option.name)


def _json(info: BackboneInfo) -> dict[str, object]:
    return {
        "digest": info.digest,
        "image_size": info.image_spec.crop,
        "width": info.width,
        "precision": info.precision,
        "licence": info.licence,
        "source": info.source,
    }
