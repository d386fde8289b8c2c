"""Group of all ``topwork-train`` commands."""

from __future__ import annotations

import click

import topwork
from topwork.command_group import CommandGroup, Lazy

SECTIONS = {
    "Train": {
        "fit": Lazy(
            "topwork_trainer.cli.fit:fit",
            "Train on the labelled photos in DATA and publish a revision.",
            "topwork-train fit photos --model flowers --repository repository",
        ),
        "embed": Lazy(
            "topwork_trainer.cli.embed:embed",
            "Embed the labelled photos in DATA, given as for fit, into Parquet files.",
            "topwork-train embed photos --out embeddings",
        ),
        "rank": Lazy(
            "topwork_trainer.cli.rank:rank",
            "Compare backbones on a sample of the photos or texts in DATA.",
            "topwork-train rank photos",
        ),
        "audit": Lazy(
            "topwork_trainer.cli.audit:audit",
            "Audit the labelled photos or texts in DATA, given as for fit.",
            "topwork-train audit photos",
        ),
    },
    "Inspect and add backbones": {
        "backbones": Lazy(
            "topwork_trainer.cli.backbones:list_backbones",
            "List the backbones on this machine, for --backbone, with size, speed and licence.",
            "topwork-train backbones",
        ),
        "describe": Lazy(
            "topwork_trainer.cli.backbones:describe",
            "Show the input size, embedding width, licence and stages of a backbone.",
            "topwork-train describe efficientnet_lite0",
        ),
        "backbone": Lazy(
            "topwork_trainer.cli.backbone:backbone",
            "Add backbones to a repository.",
            "topwork-train backbone add mine --onnx mine.onnx --repository repository",
        ),
    },
    "Try it out": {
        "demo": Lazy(
            "topwork_trainer.cli.demo:demo",
            "Run the end-to-end demo: train, serve, classify, add a class, classify again.",
            "topwork-train demo",
        ),
        "demo-data": Lazy(
            "topwork_trainer.cli.demo:demo_data",
            "Render pictures of five kinds of flowers into DIRECTORY.",
            "topwork-train demo-data photos --held-out held-out",
        ),
        "fetch": Lazy(
            "topwork_trainer.cli.demo:fetch",
            "Download the public data set NAME, flower_photos or flowers102, into DIRECTORY.",
            "topwork-train fetch flower_photos photos",
        ),
    },
}


@click.group(
    cls=CommandGroup,
    sections=SECTIONS,
    context_settings={"auto_envvar_prefix": "TOPWORK_TRAIN", "show_default": True},
)
@click.version_option(topwork.__version__)
def cli() -> None:
    """Train image classifiers on a frozen, pre-trained backbone."""
