"""Where the outputs of a model part on two devices: layer by layer, in the order in which they are computed.

Each layer is compared twice: as it comes, with all differences of the layers before it, and by itself, given the input
of the reference. The first says where a difference becomes large, the second which layer makes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

Call = tuple[str, int]  # name of a module, and the how-manieth call of it


@dataclass
class Layer:
    """One call of a module. Differences are the largest ones, as shares of the largest value of the reference."""

    name: str
    kind: str
    shape: tuple[int, ...]
    apart: float  # as it comes; infinite where only one of the two is finite or they have different shapes
    alone: float | None  # given the reference's input; None for a module that is made of others


def copies(value: Any, device: torch.device | str = "cpu") -> Any:
    """The same nested value with its tensors copied to the device: a layer may write into what it was given."""
    return tree_map(lambda leaf: leaf.detach().to(device, copy=True) if isinstance(leaf, Tensor) else leaf, value)


def tensors(value: Any) -> list[Tensor]:
    """The floating-point ones of a nested value."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def distance(reference: Any, other: Any) -> float:
    """The largest difference of two nested values, as a share of the largest value of the reference."""
    ours, theirs = tensors(reference), tensors(other)
    if [value.shape for value in ours] != [value.shape for value in theirs]:
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        if not a.numel():
            continue
        difference, scale = float((a - b).abs().max()), float(a.abs().max())
        if difference != difference:  # NaN
            return float("inf")
        worst = max(worst, difference / scale if scale else difference)
    return worst


@contextmanager
def watched(model: nn.Module, before: Callable | None, after: Callable) -> Iterator[None]:
    """In the block, `before(name, number, module, inputs)` and `after(name, number, module, output)` follow the calls
    of all modules with a name.
    """
    started, ended, handles = defaultdict(int), defaultdict(int), []

    def entering(name: str) -> Callable:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            before(name, started[name], module, (args, kwargs))
            started[name] += 1

        return hook

    def leaving(name: str) -> Callable:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            number = ended[name]
            ended[name] += 1
            after(name, number, module, output)

        return hook

    try:
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_hook(leaving(name)))
                if before is not None and is_leaf(module):
                    handles.append(module.register_forward_pre_hook(entering(name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


@torch.no_grad()
def compare_layers(
    reference: nn.Module, other: nn.Module, call: Callable[[nn.Module, Tensor], Any], value: Tensor
) -> tuple[list[Layer], tuple[Any, Any]]:
    """Call `call(model, value)` with both models, of equal structure, each on the device of its own weights; gives
    the layers in the order in which the other's end, and both results on the CPU.
    """
    inputs: dict[Call, Any] = {}
    outputs: dict[Call, Any] = {}
    layers: list[Layer] = []

    def keep_input(name: str, number: int, module: nn.Module, given: Any) -> None:
        inputs[name, number] = copies(given)

    def keep_output(name: str, number: int, module: nn.Module, output: Any) -> None:
        outputs[name, number] = copies(output)

    def look(name: str, number: int, module: nn.Module, output: Any) -> None:
        expected, given = outputs.pop((name, number), None), inputs.pop((name, number), None)
        shapes = [tuple(leaf.shape) for leaf in tensors(output)]
        if expected is None or not shapes:
            return
        alone = None
        if given is not None:
            args, kwargs = copies(given, device_of(other))
            alone = distance(expected, module.forward(*args, **kwargs))  # forward itself calls no hooks
        label = name if number == 0 else f"{name} (call {number + 1})"
        layers.append(Layer(label, type(module).__name__, shapes[0], distance(expected, output), alone))

    with watched(reference, keep_input, keep_output):
        expected = copies(call(reference, value.to(device_of(reference))))
    with watched(other, None, look):
        found = copies(call(other, value.to(device_of(other))))
    return layers, (expected, found)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def parted(layers: list[Layer], limit: float, count: int) -> list[dict[str, Any]]:
    """The first `count` layers that are further apart than `limit`, and as many again that are so by themselves."""
    found = [layer for layer in layers if layer.apart > limit][:count]
    own = [layer for layer in layers if layer.alone is not None and layer.alone > limit][:count]
    chosen = {id(layer) for layer in [*found, *own]}
    return [asdict(layer) for layer in layers if id(layer) in chosen]
