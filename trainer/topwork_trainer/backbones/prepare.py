"""Stored export of a backbone; exports it first if the repository does not have it."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, InvalidInput
from topwork.inputs.kinds import kind_of
from topwork.inputs.preprocess import DEEP_GREY, PreprocessSpec
from topwork.runtime.agreement import expect
from topwork.runtime.backend import open_session, software_versions
from topwork.runtime.cores import available_cores
from topwork.storage.files import sha256
from topwork_trainer import backbones
from topwork_trainer.backbones import BackboneChoice, TorchBackbone, plans
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.backbones.imported import IDENTITY
from topwork_trainer.backbones.parity import ExportError
from topwork_trainer.backbones.stamp import stamped
from topwork_trainer.kinds import NOUNS


def prepare_backbone(
    repository: Repository, choice: BackboneChoice, exports: Exports | None = None
) -> BackboneInfo:
    """Return the stored export of a backbone, exporting it first if the repository has none.

    The name of a backbone that was added to the repository from an ONNX file, or with weights of
    one's own, means that one.
    ``exports`` is the cache of exports made for any repository. Torch is imported only to export,
    and to find out the weights of torchvision's backbones. Raises InvalidInput for an unknown name,
    an image size that the backbone does not accept or unusable weights, NotFound for weights that
    are not available, Corrupt for a package with unknown weights, ExportError for a failed parity
    check.
    """
    if added := find_imported(repository, choice) or find_own_weights(repository, choice):
        return added
    if stored := _stored(repository, choice.identity()):
        return stored
    if choice.pins_weights and (cached := exports.find(choice.identity()) if exports else None):
        return repository.put_backbone(*cached)
    try:
        import torch
    except ImportError as error:
        raise InvalidInput(
            f"exporting backbone {choice.name!r} needs torch: pip install 'topwork[train]'"
            f" ({error})",
            field="backbone",
        ) from error
    torch.set_num_threads(available_cores())  # torch's default is the host's number
    with exports.exporting() if exports else contextlib.nullcontext():
        backbone = backbones.load(choice)
        # The identity has no size if the choice's is the backbone's own, which only torch knows.
        if stored := _stored(repository, backbone.identity):
            return stored
        weights = "" if choice.pins_weights else backbone.weights_sha256
        if cached := exports.find(backbone.identity, weights) if exports else None:
            return repository.put_backbone(*cached)
        info = store(repository, backbone)
        if exports is not None:
            exports.put(repository.backbone_model(info.digest), info, weights)
        return info


def added_names(repository: Repository, kind: str) -> list[str]:
    """Return the names of the added backbones that take inputs of the kind. Raises Corrupt."""
    return [
        name
        for name, digest in repository.added_backbones().items()
        if kind_of(repository.backbone_info(digest).preprocess).name == kind
    ]


def missing_backbone(kind: str) -> str:
    """Return the message that there is no backbone for inputs of a kind."""
    options = "--onnx FILE --audio-rate HZ" if kind == "audio" else "--encoder FOLDER"
    return (
        f"{NOUNS[kind]}s need a backbone that takes them: add one to the repository with "
        f"`topwork-train backbone add NAME {options} --repository ...`, and pass --backbone NAME"
    )


def check_kind(info: BackboneInfo, kind: str) -> None:
    """Raise InvalidInput if a backbone takes inputs of another kind."""
    if (taken := kind_of(info.preprocess).name) != kind:
        raise InvalidInput(
            f"the backbone {info.name!r} takes inputs of the kind {taken!r}, and the data has the "
            f"kind {kind!r}",
            field="backbone",
            reason="INPUT_KIND",
        )


def find_imported(repository: Repository, choice: BackboneChoice) -> BackboneInfo | None:
    """Return the imported backbone that ``choice`` names; None if it names another backbone.

    Raises InvalidInput if the choice changes or joins it, which an ONNX file does not allow.
    """
    names = repository.added_backbones()
    for part in choice.parts:
        if part not in names:
            continue
        info = repository.backbone_info(names[part])
        if not info.identity.startswith(IDENTITY):
            continue
        size = info.preprocess.crop if isinstance(info.preprocess, PreprocessSpec) else None
        own_size = choice.image_size in {None, size}
        if choice.name != part or choice.weights or choice.views != 1 or not own_size:
            raise InvalidInput(
                f"{part!r} was added from a file of its own, so it cannot be joined and has no"
                " other weights, views or image size" + (f" than {size}" if size else ""),
                field="backbone",
            )
        return info
    return None


def find_own_weights(repository: Repository, choice: BackboneChoice) -> BackboneInfo | None:
    """Return the backbone that was added under this notation with a weights file, else None.

    A folder with a network has its own weights, as long as it exists.
    """
    digest = repository.added_backbones().get(str(choice))
    folders = filter(None, map(plans.folder, choice.parts))
    if choice.weights is not None or digest is None or any(path.exists() for path in folders):
        return None
    info = repository.backbone_info(digest)
    own = info.identity.startswith(f"{choice.name}:{info.weights_digest}")
    published = choice.identity().startswith(f"{choice.name}:{info.weights_digest}")
    return info if own and not published else None


def store(repository: Repository, backbone: TorchBackbone) -> BackboneInfo:
    """Export a backbone into the repository and return its description. Raises ExportError."""
    from topwork_trainer.backbones import export

    exported = export.export(
        backbone, open_session=lambda model: open_session(model, output="embedding").run
    )
    info = BackboneInfo(
        name=backbone.name,
        identity=backbone.identity,
        digest=sha256(exported.onnx),
        preprocess=backbone.spec,
        width=backbone.width,
        precision="fp32",
        licence=backbone.licence,
        source=backbone.source,
        weights_digest=backbone.weights_sha256,
        parity_error=exported.parity.max_abs_difference,
        versions=software_versions(),
        expected=expect(open_session(exported.onnx, output="embedding").run, backbone.spec),
    )
    stored = repository.put_backbone(exported.onnx, info)
    if stored.image_spec != info.image_spec:
        raise ExportError(
            f"the repository has this graph with other preprocessing, {stored.image_spec}; "
            "use another repository"
        )
    return stored


def _stored(repository: Repository, identity: str) -> BackboneInfo | None:
    """Return the stored export of an identity, or None; damaged exports are ignored.

    An export with an earlier mapping of deep greyscale is copied with the current one.
    """
    candidates = [
        info
        for info in repository.backbones()
        if info.identity == identity and isinstance(info.preprocess, PreprocessSpec)
    ]
    for info in sorted(candidates, key=lambda info: info.image_spec.deep_grey != DEEP_GREY):
        try:
            model = repository.backbone_model(info.digest)
        except Corrupt:
            continue
        if info.image_spec.deep_grey == DEEP_GREY:
            return info
        spec = replace(info.image_spec, deep_grey=DEEP_GREY)
        model = stamped(model, spec)
        return repository.put_backbone(model, replace(info, digest=sha256(model), preprocess=spec))
    return None
