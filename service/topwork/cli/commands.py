"""The group of all ``topwork`` commands."""

from __future__ import annotations

import click

import topwork
from topwork.command_group import CommandGroup, Lazy

SECTIONS = {
    "Query a server": {
        "classify": Lazy(
            "topwork.cli.classify:classify",
            "Classify IMAGES (photos, texts .txt, embeddings .npy or .npz, or folders).",
            "topwork classify --model flowers photo.jpg more-photos/",
        ),
        "evaluate": Lazy(
            "topwork.cli.evaluate:evaluate",
            "Evaluate MODEL on the labelled photos of DATA, with a server or a repository.",
            "topwork evaluate flowers photos",
        ),
        "explain": Lazy(
            "topwork.cli.explain:explain",
            "Explain how MODEL classifies IMAGE: heat map and nearest training images.",
            "topwork explain flowers photo.jpg --out page.html",
        ),
        "evaluations": Lazy(
            "topwork.cli.evaluations:evaluations",
            "List, show and delete the evaluation sets of a model.",
            "topwork evaluations show flowers held-out",
        ),
        "models": Lazy(
            "topwork.cli.models:models", "List the models of a server.", "topwork models --json"
        ),
        "describe": Lazy(
            "topwork.cli.models:describe",
            "Show a model: precision and recall of each label, revisions, backbone, limits.",
            "topwork describe flowers",
        ),
        "history": Lazy(
            "topwork.cli.history:history",
            "List a model's revisions, newest first, and the times from which they served.",
            "topwork history flowers",
        ),
        "report": Lazy(
            "topwork.cli.report:report",
            "Write the report of MODEL's revision, one HTML page, to a file.",
            "topwork report flowers --out report.html",
        ),
        "backbones": Lazy(
            "topwork.cli.lifecycle:backbones",
            "List the backbones that `topwork create` can use.",
            "topwork backbones",
        ),
        "operations": Lazy(
            "topwork.cli.operations:operations",
            "List, watch and cancel changes of models.",
            "topwork operations list --filter 'done = false'",
        ),
        "health": Lazy(
            "topwork.cli.health:health",
            "Check the health of a server.",
            "topwork health --address localhost:50051",
        ),
    },
    "Change a live model": {
        "add-class": Lazy(
            "topwork.cli.add:add_class",
            "Add a class to a live model from PHOTOS (files or folders).",
            "topwork add-class --model flowers --label tulips photos/tulips",
        ),
        "add-classes": Lazy(
            "topwork.cli.add:add_classes",
            "Add all classes of DATA to a live model, in one change.",
            "topwork add-classes --model flowers more-photos/",
        ),
        "add-examples": Lazy(
            "topwork.cli.add:add_examples",
            "Add PHOTOS (files or folders) to a class of a live model.",
            "topwork add-examples --model flowers --label tulips more-tulips/",
        ),
        "remove-class": Lazy(
            "topwork.cli.change:remove_class",
            "Remove a class from a live model.",
            "topwork remove-class --model flowers --label tulips",
        ),
        "rename-class": Lazy(
            "topwork.cli.change:rename_class",
            "Rename a class of a live model.",
            "topwork rename-class --model flowers --label tulips --new-label tulip",
        ),
        "retrain": Lazy(
            "topwork.cli.change:retrain",
            "Train a live model's head again on its stored exemplars.",
            "topwork retrain --model flowers --head logistic",
        ),
        "examples": Lazy(
            "topwork.cli.examples:examples",
            "List, show, move and remove training images of a live model.",
            "topwork examples list flowers --filter 'suspect = true'",
        ),
        "review": Lazy(
            "topwork.cli.review:review",
            "Keep doubtful images of a live model, and label them.",
            "topwork review groups flowers",
        ),
        "rollback": Lazy(
            "topwork.cli.history:rollback",
            "Make an earlier revision of a model serve again.",
            "topwork rollback --model flowers --revision 1",
        ),
        "pin-revision": Lazy(
            "topwork.cli.history:pin_revision",
            "Protect a revision of a model from `topwork gc`.",
            "topwork pin-revision --model flowers --revision 1",
        ),
    },
    "Create and delete models": {
        "create": Lazy(
            "topwork.cli.lifecycle:create",
            "Create MODEL without labels. It serves once it has two: see `topwork add-class`.",
            "topwork create trees --like flowers",
        ),
        "copy": Lazy(
            "topwork.cli.lifecycle:copy",
            "Copy a revision of SOURCE with its exemplars into the new MODEL, which serves.",
            "topwork copy flowers flowers-trial",
        ),
        "delete": Lazy(
            "topwork.cli.lifecycle:delete",
            "Delete MODEL. Until `topwork gc` deletes its files, `topwork undelete` restores it.",
            "topwork delete flowers-trial",
        ),
        "undelete": Lazy(
            "topwork.cli.lifecycle:undelete",
            "Restore the deleted MODEL.",
            "topwork undelete flowers-trial",
        ),
    },
    "Use a repository without a server": {
        "predict": Lazy(
            "topwork.cli.predict:predict",
            "Classify IMAGES with MODEL of a repository, without a server.",
            "topwork predict flowers --repository repository photo.jpg",
        ),
        "export": Lazy(
            "topwork.cli.export:export",
            "Export MODEL of a repository as one ONNX file, OUTPUT, for other runtimes.",
            "topwork export flowers flowers.onnx --repository repository",
        ),
    },
    "Run a server": {
        "serve": Lazy(
            "topwork.cli.serve:serve",
            "Serve all models of a repository over gRPC until SIGTERM.",
            "topwork serve --repository repository",
        ),
        "worker": Lazy(
            "topwork.cli.serve:worker",
            "Carry out queued changes of models until SIGTERM.",
            "topwork worker --repository repository --database postgresql://user@host/topwork",
        ),
        "gateway": Lazy(
            "topwork.cli.serve:gateway",
            "Serve the HTTP/JSON API of a gRPC server until SIGTERM.",
            "topwork gateway --server localhost:50051 --http-port 8080",
        ),
        "token": Lazy(
            "topwork.cli.token:token",
            "Create a bearer token for PRINCIPAL and its entry in the access file.",
            "topwork token camera-1 --role classify",
        ),
        "proto": Lazy(
            "topwork.cli.proto:proto",
            "Write the .proto files of the API, and those that they import, to DIRECTORY.",
            "topwork proto contract",
        ),
    },
    "Maintain a repository": {
        "gc": Lazy(
            "topwork.cli.maintain:gc",
            "Delete old revisions, and files that no revision refers to.",
            "topwork gc repository",
        ),
        "fsck": Lazy(
            "topwork.cli.maintain:fsck",
            "Verify all checksums and references of a repository.",
            "topwork fsck repository",
        ),
        "copy-repository": Lazy(
            "topwork.cli.copy_repository:copy_repository",
            "Copy the models of SOURCE to TARGET, each a directory or the URL of a bucket.",
            "topwork copy-repository repository s3://bucket/models",
        ),
        "keygen": Lazy(
            "topwork.cli.sign:keygen",
            "Create a key pair for signing revisions: KEY and KEY.pub.",
            "topwork keygen signing-key",
        ),
        "sign": Lazy(
            "topwork.cli.sign:sign",
            "Sign published revisions of a repository.",
            "topwork sign repository --signing-key signing-key",
        ),
        "verify": Lazy(
            "topwork.cli.sign:verify",
            "List the trusted signatures of a repository's revisions, newest first.",
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
    """Serve classifiers over gRPC, call them, and add classes while they serve."""
