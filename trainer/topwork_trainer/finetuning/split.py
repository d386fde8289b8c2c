"""Division of a backbone into a frozen stem and a trainable top, as two graphs. Imports torch."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from topwork_trainer.backbones import TorchBackbone
from topwork_trainer.backbones.parity import ExportError, structured_images


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitBackbone:
    """A backbone in two parts: ``top(*stem(images))`` is what the backbone's module returns."""

    stem: GraphModule
    """Maps images, as the backbone's module takes them, to a tuple of activations of N rows."""
    top: GraphModule
    """Maps the activations to embeddings (N, D); has the trained parameters, by their names."""
    shapes: tuple[tuple[int, ...], ...]
    """Shape of each of the activations of one image."""


def split(backbone: TorchBackbone, trained: Collection[str]) -> SplitBackbone:
    """Divide a backbone where its ``trained`` parameters begin to have an effect.

    The stem computes all that does not depend on these parameters. Raises ExportError if torch
    cannot trace the backbone, or if the parts together give other embeddings.
    """
    whole = _trace(backbone)
    nodes = list(whole.graph.nodes)
    above = _depending([node for node in nodes if node.target in trained], nodes)
    of_image = _depending([node for node in nodes if node.op == "placeholder"], nodes)
    cut = [
        node
        for node in nodes
        if node in of_image
        and node not in above
        and isinstance(node.meta["val"], Tensor)
        and not above.isdisjoint(node.users)
    ]
    parts = SplitBackbone(
        stem=_stem(whole, cut),
        top=_top(whole, cut, [node for node in nodes if node in above]),
        shapes=tuple(tuple(node.meta["val"].shape[1:]) for node in cut),
    )
    _check(backbone, parts)
    return parts


def _trace(backbone: TorchBackbone) -> GraphModule:
    example = torch.zeros(2, 3, backbone.spec.crop, backbone.spec.crop)
    batch = ({0: torch.export.Dim("batch")},)
    try:
        program = torch.export.export(
            backbone.module, (example,), dynamic_shapes=batch, strict=False
        )
    except Exception as error:  # torch's exporter raises errors of many types
        raise ExportError(f"torch cannot trace {backbone.name}: {error}") from error
    whole = program.module(check_guards=False)
    assert isinstance(whole, GraphModule), "torch.export returns a graph"
    return whole


def _depending(roots: Collection[Node], nodes: Collection[Node]) -> set[Node]:
    """Return the roots and all nodes that depend on one; ``nodes`` are in order of computation."""
    found = set(roots)
    for node in nodes:
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _stem(whole: GraphModule, cut: Collection[Node]) -> GraphModule:
    stem = Graph()
    copies: dict[Node, Node] = {}
    needed = set(cut)
    for node in reversed(whole.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    for node in whole.graph.nodes:
        if node in needed or node.op == "placeholder":
            copies[node] = stem.node_copy(node, copies.__getitem__)
    stem.output(tuple(copies[node] for node in cut))
    return GraphModule(whole, stem)


def _top(whole: GraphModule, cut: Collection[Node], above: Collection[Node]) -> GraphModule:
    """Return the graph of the nodes ``above`` the cut, with all that they need besides images."""
    top = Graph()
    copies = {node: top.placeholder(f"activation_{at}") for at, node in enumerate(cut)}
    first = next(iter(copies.values()))

    def copy(node: Node) -> Node:
        if node not in copies:
            if node.target is torch.ops.aten.sym_size.int:  # the number of images
                copies[node] = top.call_function(torch.ops.aten.sym_size.int, (first, 0))
            else:
                copies[node] = top.node_copy(node, copy)
        return copies[node]

    for node in above:
        if node.op == "output":
            outputs: Any = node.args[0]
            top.output(copy(outputs[0]))
        else:
            copy(node)
    _fold_norms(top)
    return GraphModule(whole, top)


def _fold_norms(graph: Graph) -> None:
    """Apply batch norms in eval mode to the weights of their convolutions.

    A training step computes the same function and gradients in 15 to 20 % less time.
    """
    for norm in graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default):
        arguments: Any = norm.args
        convolution, *affine, training, _, epsilon, _ = arguments
        if (
            convolution.target is not torch.ops.aten.conv2d.default
            or len(convolution.users) > 1
            or training
            or None in affine
        ):
            continue
        images, weight, *rest = convolution.args
        bias, *rest = rest or [None]
        with graph.inserting_before(norm):
            folded = graph.call_function(_folded, (weight, bias, *affine, epsilon))
            parts = [graph.call_function(operator.getitem, (folded, at)) for at in (0, 1)]
            new = graph.call_function(
                convolution.target, (images, *parts, *rest), convolution.kwargs
            )
        norm.replace_all_uses_with(new)
        graph.erase_node(norm)
        graph.erase_node(convolution)


def _folded(
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution with the batch norm after it."""
    scale = scale * torch.rsqrt(variance + epsilon)
    return weight * scale.view(-1, 1, 1, 1), ((0 if bias is None else bias) - mean) * scale + shift


def _check(backbone: TorchBackbone, parts: SplitBackbone) -> None:
    images = torch.from_numpy(structured_images(backbone.spec.crop)).permute(0, 3, 1, 2).float()
    images = (images - torch.tensor(backbone.mean).view(3, 1, 1)) / torch.tensor(backbone.std).view(
        3, 1, 1
    )
    with torch.inference_mode():
        expected = backbone.module(images.clone())
        actual = parts.top(*parts.stem(images))
    difference = float((actual - expected).abs().max())
    if not difference <= 1e-4 * float(expected.abs().max()):  # negated, so that NaN fails
        raise ExportError(
            f"{backbone.name} cannot be divided for fine-tuning: its embeddings differ by"
            f" {difference:.3g}; unfreeze other stages"
        )
