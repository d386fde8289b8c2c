"""The group of all ``topwork-train`` commands."""

from __future__ import annotations

import click

import topwork
from topwork.command_group import CommandGroup, Lazy

SECTIONS = {
    "Train": {
        "fit": Lazy(
            "topwork_trainer.cli.fit:fit",
            "Train on DATA, a folder with a folder of photos for each class, and publish a "
            "revision.",
            "topwork-train fit photos --model flowers --repository repository",
        ),
        "rank": Lazy(
            "topwork_trainer.cli.rank:rank",
            "Try backbones on a sample of DATA, a folder with a folder of photos for each class.",
            "topwork-train rank photos",
        ),
        "audit": Lazy(
            "topwork_trainer.cli.audit:audit",
            "Audit the photos in DATA, a folder with a folder for each class.",
            "topwork-train audit photos",
        ),
    },
    "Look at backbones": {
        "backbones": Lazy(
            "topwork_trainer.cli.backbones:list_backbones",
            "List the names that --backbone knows.",
            "topwork-train backbones",
        ),
        "describe": Lazy(
            "topwork_trainer.cli.backbones:describe",
            "Show a backbone: its input, its embedding, and its stages, counted as --unfreeze "
            "does.",
            "topwork-train describe efficientnet_lite0",
        ),
    },
    "Try it out": {
        "demo": Lazy(
            "topwork_trainer.cli.demo:demo",
            "Tell the whole story: fit all classes but one, serve, classify, add the last, "
            "classify.",
            "topwork-train demo",
        ),
        "demo-data": Lazy(
            "topwork_trainer.cli.demo:demo_data",
            "Render photos of five kinds of flowers into DIRECTORY.",
            "topwork-train demo-data photos --held-out held-out",
        ),
        "fetch": Lazy(
            "topwork_trainer.cli.demo:fetch",
            "Download real photos: NAME is flower_photos or flowers102.",
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
