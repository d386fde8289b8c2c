"""Command ``backbone``: adds backbones to a repository."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from topwork import tables
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.names import check_model
from topwork.bundle.opening import open_repository
from topwork.command_group import example
from topwork.errors import InvalidInput
from topwork.inputs.audio import MOST_SECONDS, AudioSpec
from topwork.inputs.preprocess import Interpolation
from topwork.inputs.sound_file import LEAST_RATE, MOST_RATE
from topwork.inputs.text import MOST_TOKENS, TextSpec
from topwork.repository_option import database_option, repository_option
from topwork.storage.location import Location
from topwork_trainer import backbones
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.backbones.imported import ImportedBackbone
from topwork_trainer.backbones.onnx_graph import Layout
from topwork_trainer.backbones.onnx_import import OnnxSource, import_onnx
from topwork_trainer.backbones.onnx_wrap import Pool
from topwork_trainer.backbones.plans import Rgb
from topwork_trainer.backbones.prepare import prepare_backbone
from topwork_trainer.backbones.sounds.encoder import AudioSource, import_audio
from topwork_trainer.backbones.texts.encoder import TextSource, import_file
from topwork_trainer.backbones.texts.folder import FolderOptions, import_folder
from topwork_trainer.cli.options import cache_option
from topwork_trainer.kinds import size_text, sizes_json


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
@repository_option("Repository that stores the backbone under NAME.", exists=False, required=True)
@database_option
@click.option(
    "--onnx",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="ONNX file of an image classifier or feature extractor, or, with --tokenizer, of a text "
    "encoder, or, with --audio-rate, of an encoder of waveforms. The options below describe it.",
)
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File tokenizer.json of the text encoder in --onnx.",
)
@click.option(
    "--encoder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of a text encoder in place of --onnx: tokenizer.json with model.onnx (as Optimum "
    "writes it), or with model.safetensors and config.json (as save_pretrained and "
    "sentence-transformers write them; this needs torch and transformers).",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, MOST_TOKENS),
    help="Tokens of the longest text; more are cut off. Default: the encoder's, or 512.",
)
@click.option("--normalise", is_flag=True, help="Scale the embeddings of texts to length 1.")
@click.option(
    "--audio-rate",
    type=click.IntRange(LEAST_RATE, MOST_RATE),
    help="Rate in Hz of the waveforms (N, samples) that the encoder of audio in --onnx takes, such "
    "as a wav2vec2 that Optimum exported.",
)
@click.option(
    "--window",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds of a window of audio; shorter recordings are padded with silence. Default: the "
    "only length that the encoder takes, or 1.",
)
@click.option(
    "--hop",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds from one window of audio to the next. Default: the window.",
)
@click.option(
    "--max-seconds",
    type=click.IntRange(1, MOST_SECONDS),
    help="Seconds of the longest recording; longer ones are refused. Default: 60.",
)
@click.option(
    "--audio-normalise",
    is_flag=True,
    help="Scale each window to mean 0 and variance 1, as do_normalize in an encoder's "
    "preprocessor_config.json says.",
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
    "--pooling",
    type=click.Choice(get_args(Pool)),
    help="Rows to use of a transformer's output: CLS, the mean of the patches or tokens, or both "
    "(of images). Default for texts: the encoder's, or the mean.",
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
    repository: Location,
    database: str,
    weights: Path | None,
    replaces: bool,
    cache: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Store a backbone in a repository, so that models can be made of it there.

    Without --onnx and --encoder, NAME is a backbone as for fit, which is exported. With one of them
    it is a new name for the graph in a file, which is checked and completed without torch. In all
    cases `fit --backbone NAME` with the same repository uses it.
    """
    target = open_repository(repository, database=database, writes=True)
    notes: tuple[str, ...] = ()
    _check_options(options)
    if options["file"] is None and options["encoder"] is None:
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
        imported = _import(name, options)
        info = target.put_backbone(imported.onnx, imported.info)
        thing = _TIMED.get(type(info.preprocess), "image")
        notes = (*imported.notes, f"{imported.milliseconds:.1f} ms per {thing} on one core")
    target.add_backbone(name, info.digest, replace=replaces)
    if as_json:
        print(json.dumps({"name": name, **_json(info), "notes": notes}))
        return
    console = tables.console()
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{name} is stored as {info.digest[:12]}: input {size_text(info.preprocess)}, embedding"
        f" {info.width}, {info.precision}, licence {info.licence}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


_OF_FILES = {"output": "output", "licence": "licence", "pool": "pool"}
"""Options of any file, by field."""
_OF_IMAGES = {
    "layout": "layout",
    "image_size": "image-size",
    "value_range": "range",
    "mean": "mean",
    "std": "std",
    "interpolation": "interpolation",
}
_OF_TEXTS = {"max_tokens": "max-tokens", "normalise": "normalise"}
_OF_AUDIO = {
    "window": "window",
    "hop": "hop",
    "max_seconds": "max-seconds",
    "audio_normalise": "audio-normalise",
}
_TIMED = {TextSpec: "text", AudioSpec: "window"}


def _import(name: str, options: Mapping[str, Any]) -> ImportedBackbone:
    """Return the backbone of a file or folder. Raises InvalidInput."""
    file, tokenizer, folder = (options[key] for key in ("file", "tokenizer", "encoder"))
    given = {key: options[key] for key in ("output", *_OF_TEXTS)} | {"pooling": options["pool"]}
    licence = options["licence"] if _is_given("licence") else None
    if folder is not None:
        return import_folder(name, folder, FolderOptions(**given, licence=licence))
    if tokenizer is not None:
        return import_file(
            name,
            TextSource(file=file, tokenizer=tokenizer, licence=options["licence"], **given),
        )
    if (rate := options["audio_rate"]) is not None:
        of_audio = {key: options[key] for key in ("output", "licence", *_OF_AUDIO)}
        return import_audio(name, AudioSource(file=file, audio_rate=rate, **of_audio))
    own = {key: options[key] for key in (*_OF_FILES, *_OF_IMAGES)}
    return import_onnx(name, OnnxSource(file=file, **own))


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise InvalidInput if an option is given that has no meaning for what is added."""
    if options["encoder"] and (options["file"] or options["tokenizer"]):
        raise InvalidInput("--encoder has graph and tokenizer in one folder", field="encoder")
    if options["tokenizer"] and not options["file"]:
        raise InvalidInput("--tokenizer needs --onnx", field="tokenizer")
    of_texts = options["encoder"] or options["tokenizer"]
    of_audio = options["audio_rate"] is not None
    if of_audio and of_texts:
        raise InvalidInput("--audio-rate is for audio, not for text encoders", field="audio_rate")
    own = _OF_FILES | _OF_IMAGES | _OF_TEXTS | _OF_AUDIO | {"audio_rate": "audio-rate"}
    for field, flag in own.items():
        if not _is_given(field):
            continue
        if not (options["file"] or options["encoder"]):
            raise InvalidInput(f"--{flag} needs --onnx", field=field)
        if of_audio and field in {*_OF_IMAGES, "pool"}:
            raise InvalidInput(f"--{flag} is for images, not for audio", field=field)
        if not of_audio and field in _OF_AUDIO:
            raise InvalidInput(f"--{flag} needs --audio-rate", field=field)
        if of_texts and field in _OF_IMAGES:
            raise InvalidInput(f"--{flag} is for images, not for text encoders", field=field)
        if not of_texts and field in _OF_TEXTS:
            raise InvalidInput(f"--{flag} needs --tokenizer or --encoder", field=field)
    if of_texts and options["pool"] == "both":
        raise InvalidInput("the pooling of texts is mean or cls", field="pool")


def _is_given(option: str) -> bool:
    source = click.get_current_context().get_parameter_source(option)
    return source is ParameterSource.COMMANDLINE


def _json(info: BackboneInfo) -> dict[str, object]:
    return {
        "digest": info.digest,
        **sizes_json(info.preprocess),
        "width": info.width,
        "precision": info.precision,
        "licence": info.licence,
        "source": info.source,
    }
