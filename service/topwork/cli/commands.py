"""The group of all ``topwork`` commands."""

from __future__ import annotations

import click

import topwork
from topwork.command_group import CommandGroup, Lazy

SECTIONS = {
    "Ask a server": {
        "classify": Lazy(
            "topwork.cli.classify:classify",
            "Classify IMAGES (files, or folders of them).",
            "topwork classify --model flowers photo.jpg more-photos/",
        ),
        "models": Lazy(
            "topwork.cli.ask:models", "List the models of a server.", "topwork models --json"
        ),
        "describe": Lazy(
            "topwork.cli.ask:describe",
            "Show a model: labels with their precision and recall, revisions, backbone, limits.",
            "topwork describe flowers",
        ),
        "history": Lazy(
            "topwork.cli.history:history",
            "Show a model's revisions, newest first, and when each of them served.",
            "topwork history flowers",
        ),
        "operations": Lazy(
            "topwork.cli.operations:operations",
            "List, watch and cancel changes of models.",
            "topwork operations list --filter 'done = false'",
        ),
        "health": Lazy(
            "topwork.cli.health:health",
            "Ask a server whether it serves.",
            "topwork health --address localhost:50051",
        ),
    },
    "Teach a live model": {
        "add-class": Lazy(
            "topwork.cli.teach:add_class",
            "Teach a live model a new class from PHOTOS (files, or folders of them).",
            "topwork add-class --model flowers --label tulips photos/tulips",
        ),
        "add-examples": Lazy(
            "topwork.cli.teach:add_examples",
            "Teach a live model more PHOTOS (files, or folders of them) of a class that it has.",
            "topwork add-examples --model flowers --label tulips more-tulips/",
        ),
        "remove-class": Lazy(
            "topwork.cli.change:remove_class",
            "Remove a class: the model becomes what it would be without that class's photos.",
            "topwork remove-class --model flowers --label tulips",
        ),
        "rename-class": Lazy(
            "topwork.cli.change:rename_class",
            "Rename a class of a live model.",
            "topwork rename-class --model flowers --label tulips --new-label tulip",
        ),
        "retrain": Lazy(
            "topwork.cli.change:retrain",
            "Train a live model's head again, on the photos that it has.",
            "topwork retrain --model flowers --head logistic",
        ),
        "rollback": Lazy(
            "topwork.cli.history:rollback",
            "Let an earlier revision of a model serve again, at once.",
            "topwork rollback --model flowers --revision 1",
        ),
        "pin-revision": Lazy(
            "topwork.cli.history:pin_revision",
            "Keep a revision of a model for good: `topwork gc` never deletes it.",
            "topwork pin-revision --model flowers --revision 1",
        ),
    },
    "Operate a server": {
        "serve": Lazy(
            "topwork.cli.serve:serve",
            "Serve all models of a repository over gRPC, until SIGTERM.",
            "topwork serve --repository repository",
        ),
        "worker": Lazy(
            "topwork.cli.serve:worker",
            "Make the changes that servers were asked for, until SIGTERM.",
            "topwork worker --repository repository --database postgresql://user@host/topwork",
        ),
        "token": Lazy(
            "topwork.cli.token:token",
            "Make a token for PRINCIPAL, and the lines of the access file that let it in.",
            "topwork token camera-1 --role classify",
        ),
        "proto": Lazy(
            "topwork.cli.proto:proto",
            "Write the contract's .proto files into DIRECTORY, with those of Google's that they "
            "import.",
            "topwork proto contract",
        ),
    },
    "Maintain a repository": {
        "gc": Lazy(
            "topwork.cli.maintain:gc",
            "Delete old revisions of REPOSITORY's models, and what nothing refers to any more.",
            "topwork gc repository",
        ),
        "fsck": Lazy(
            "topwork.cli.maintain:fsck",
            "Verify every digest and every reference in REPOSITORY and name all that is wrong.",
            "topwork fsck repository",
        ),
        "keygen": Lazy(
            "topwork.cli.sign:keygen",
            "Make a key that signs revisions: KEY, which only you can read, and KEY.pub, to be "
            "trusted.",
            "topwork keygen signing-key",
        ),
        "sign": Lazy(
            "topwork.cli.sign:sign",
            "Sign revisions of REPOSITORY that are published already, beside who signed them "
            "before.",
            "topwork sign repository --signing-key signing-key",
        ),
        "verify": Lazy(
            "topwork.cli.sign:verify",
            "Tell which trusted keys have signed which revisions of REPOSITORY, newest first.",
            "topwork verify repository --trusted-keys signing-key.pub",
        ),
    },
}


@click.group(
    cls=CommandGroup,
    sections=SECTIONS,
    context_settings={"auto_envvar_prefix": "TOPWORK", "show_default": True},
)
@click.version_option(topwork.__version__)
def cli() -> None:
    """Serve image classifiers, ask them, and teach them new classes while they serve."""
