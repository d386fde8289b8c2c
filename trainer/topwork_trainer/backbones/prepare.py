"""The stored export of a backbone, made first if the repository has none."""

from __future__ import annotations

from dataclasses import replace

from topwork.bundle.files import sha256
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, InvalidInput
from topwork.inputs.preprocess import DEEP_GREY
from topwork.runtime.backend import open_session, software_versions
from topwork.runtime.cores import available_cores
from topwork_trainer import backbones
from topwork_trainer.backbones import BackboneChoice, TorchBackbone
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.backbones.stamp import stamped


def prepare_backbone(
    repository: Repository, choice: BackboneChoice, exports: Exports | None = None
) -> BackboneInfo:
    """Return the stored export of a backbone, exporting it first if the repository has none.

    ``exports`` are those that were made before, for whichever repository. Only exporting needs
    torch, and knowing which weights torchvision's backbones have. Raises InvalidInput for an
    unknown name, an image size that the backbone does not take or unusable weights, NotFound for
    weights that cannot be had, Corrupt for a package with other weights, ExportError for a failed
    parity check.
    """
    if stored := _stored(repository, choice.identity()):
        return stored
    if choice.pins_weights and (made := exports.find(choice.identity()) if exports else None):
        return repository.put_backbone(*made)
    try:
        import torch
    except ImportError as error:
        raise InvalidInput(
            f"exporting backbone {choice.name!r} needs torch: pip install 'topwork[train]'"
            f" ({error})",
            field="backbone",
        ) from error
    torch.set_num_threads(available_cores())  # torch, too, counts the host's
    backbone = backbones.load(choice)
    # Now it is known whether the size that was asked for is the backbone's own.
    if stored := _stored(repository, backbone.identity):
        return stored
    weights = "" if choice.pins_weights else backbone.weights_sha256
    if made := exports.find(backbone.identity, weights) if exports else None:
        return repository.put_backbone(*made)
    info = store(repository, backbone)
    if exports is not None:
        exports.put(repository.backbone_model(info.digest), info, weights)
    return info


def store(repository: Repository, backbone: TorchBackbone) -> BackboneInfo:
    """Export a backbone into the repository and return what is stored. Raises ExportError."""
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
    )
    kept = repository.put_backbone(exported.onnx, info)
    if kept.preprocess != info.preprocess:
        raise export.ExportError(
            f"the repository has this graph with other preprocessing, {kept.preprocess}; "
            "use another repository"
        )
    return kept


def _stored(repository: Repository, identity: str) -> BackboneInfo | None:
    """Return a stored export for new fits; one of another mapping of deep greyscale is copied.

    An export whose graph is damaged is none.
    """
    found = [info for info in repository.backbones() if info.identity == identity]
    for info in sorted(found, key=lambda info: info.preprocess.deep_grey != DEEP_GREY):
        try:
            model = repository.backbone_model(info.digest)
        except Corrupt:
            continue
        if info.preprocess.deep_grey == DEEP_GREY:
            return info
        spec = replace(info.preprocess, deep_grey=DEEP_GREY)
        model = stamped(model, spec)
        return repository.put_backbone(model, replace(info, digest=sha256(model), preprocess=spec))
    return None
