"""What one training step costs: parameters, peak memory and operations of any registered network.

The network is built on torch's meta device, which knows shapes and allocates nothing, and one real step (forward,
loss, backward) runs on it. Every tensor that an operation makes is counted once per storage, from its creation until
the last reference to it goes; so saved activations, gradients, temporaries and loss buffers need no formula, and no
architecture needs a table. Against the counter of the CPU allocator the traced peak is exact (see the tests).

Formulas remain for what an operation does not hand out:
    optimizer    float32 copies of the parameters, alive all the time: one for SGD with momentum, two for Adam
    workspace    the largest output of a convolution once more: oneDNN and cuDNN work in a memory layout of their own.
                 With it, and 130 MB for oneDNN's compiled kernels, four plain U-Nets of 0.6 to 4.5 GB came within
                 3% of the resident memory that their process took
    update       weights, gradients, the optimizer's copies and one temporary copy: the peak of networks much larger
                 than a patch
What a process takes apart from its network (CUDA context, fragments, code) is the planner's reserve, not a cost.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import conv_flop_count, flop_registry

from autoseg.errors import SettingError
from autoseg.nets import build_network, traits_of
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Architecture, Cost, Topology

PRECISIONS = ("float32", "mixed")


def _convolution_backward_flops(upstream: Tensor, x: Tensor, weight: Tensor, *rest: Any, **_: Any) -> int:
    """As many operations as forward for each of the two gradients; torch's own formula ignores groups."""
    transposed, wanted = rest[4], rest[7]
    forward = conv_flop_count(list(x.shape), list(weight.shape), list(upstream.shape), transposed=transposed)
    return int(forward) * (int(wanted[0]) + int(wanted[1]))


# What torch's table lacks: fused attention of the CPU, and convolutions with groups.
_FLOPS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.convolution_backward: _convolution_backward_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention
    ],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ],
}
# Copies of the parameters that an optimizer keeps.
_STATES = {"sgd": 1, "adam": 2, "adamw": 2, "muon": 1}


def training_cost(
    architecture: Architecture,
    topology: Topology,
    *,
    ndim: int,
    patch_size: Shape,
    batch_size: int,
    in_channels: int,
    num_heads: int,
    precision: str = "float32",
    with_workspace: bool = True,
) -> Cost:
    """Trace one training step; about 0.3 s, remembered for the same arguments.

    Args:
        precision: ``float32``, or ``mixed`` for autocast with 16-bit activations and float32 weights.
        with_workspace: count what libraries take beside torch's allocator.

    Returns:
        Trainable parameters, bytes alive at the peak, and floating-point operations (a multiply-add is two).

    Raises:
        SettingError: the network cannot be built for this patch, or an unknown precision.
    """
    if precision not in PRECISIONS:
        raise SettingError(f"there is no precision {precision!r}", hint=f"choose one of: {', '.join(PRECISIONS)}")
    arguments = json.dumps(architecture.arguments, sort_keys=True)
    return _cost(
        architecture.name,
        arguments,
        topology,
        ndim,
        patch_size,
        batch_size,
        in_channels,
        num_heads,
        precision,
        with_workspace,
    )


@lru_cache(maxsize=1024)
def _cost(
    name: str,
    arguments: str,
    topology: Topology,
    ndim: int,
    patch_size: Shape,
    batch_size: int,
    in_channels: int,
    num_heads: int,
    precision: str,
    with_workspace: bool,
) -> Cost:
    architecture = Architecture(name=name, arguments=json.loads(arguments))
    with torch.device("meta"):
        network = build_network(
            architecture,
            topology,
            ndim=ndim,
            in_channels=in_channels,
            num_heads=num_heads,
            patch_size=patch_size,
        ).train()
        images = torch.empty(batch_size, in_channels, *patch_size)
        target = torch.empty(batch_size, 1, *patch_size, dtype=torch.int64)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    parameters = sum(parameter.numel() for parameter in trained)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    trace = _trace(network, images, target, precision)
    states = _STATES[traits_of(name).recipe.optimizer]
    workspace = trace.workspace if with_workspace else 0
    memory = max(trace.peak + workspace + states * weights, (3 + states) * weights)
    return Cost(parameters=parameters, memory_bytes=memory, flops=trace.flops)


def _trace(network: nn.Module, images: Tensor, target: Tensor, precision: str) -> _LiveBytes:
    live = _LiveBytes()
    weights: tuple[float, ...] = network.output_weights  # type: ignore[assignment]
    for tensor in (images, target, *network.parameters(), *network.buffers()):
        live.count(tensor)
    with torch.device("meta"), live, _FusedAttention():
        with _Autocast() if precision == "mixed" else nullcontext():
            # Nothing may hold the outputs during backward: training does not either.
            loss = _typical_loss(network(images), target, weights)
        loss.backward()
    return live


class _LiveBytes(TorchDispatchMode):
    """Bytes of all storages alive, their peak, the largest output of a convolution, and operations so far."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.workspace = 0
        self.flops = 0
        self._sizes: dict[int, tuple[int, weakref.ref[Any]]] = {}

    def count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._sizes:
            self._sizes[key] = (storage.nbytes(), weakref.ref(storage, lambda _: self._forget(key)))
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)

    def _forget(self, key: int) -> None:
        size, _ = self._sizes.pop(key)
        self.live -= size

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.count(tensor)
        if func is torch.ops.aten.convolution.default:
            self.workspace = max(self.workspace, result.untyped_storage().nbytes())
        packet = func._overloadpacket  # type: ignore[attr-defined]
        formula = _FLOPS.get(packet) or flop_registry.get(packet)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=result))
        return result


class _FusedAttention(TorchFunctionMode):
    """Attention without its map of tokens by tokens, as real devices compute it; meta tensors take the long way."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        mask = kwargs.get("attn_mask")
        # A mask that is learned needs the gradient of the whole map, on every device.
        if func is F.scaled_dot_product_attention and not (mask is not None and mask.requires_grad):
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args, **kwargs)[0]
        return func(*args, **kwargs)


class _Autocast(TorchFunctionMode):
    """Autocast's rules for tensors on the meta device, for which torch has none.

    The names are those of https://docs.pytorch.org/docs/stable/amp.html that occur in segmentation networks; all
    other functions take the types that they are given.
    """

    half = frozenset(
        {
            *(f"{kind}{ndim}d" for kind in ("conv", "conv_transpose") for ndim in (1, 2, 3)),
            *("linear", "prelu", "matmul", "mm", "bmm", "addmm", "addbmm", "baddbmm", "einsum", "__matmul__"),
            *("scaled_dot_product_attention", "multi_head_attention_forward"),
        }
    )
    full = frozenset({"layer_norm", "group_norm", "softmax", "log_softmax", "normalize", "exp", "log", "pow", "norm"})

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        if name in self.half:
            args, kwargs = _cast((args, kwargs), torch.bfloat16)
        elif name in self.full:
            args, kwargs = _cast((args, kwargs), torch.float32)
        return func(*args, **kwargs)


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    return tree_map(
        lambda leaf: leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, tree
    )


class _SoftmaxLoss(torch.autograd.Function):
    """The buffers of autoseg's loss for labels: softmax in float32, kept for backward, and a gradient of its size."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        probabilities = torch.softmax(logits, dim=1, dtype=torch.float32)
        ctx.save_for_backward(probabilities, target)
        ctx.dtype = logits.dtype
        return probabilities.gather(1, target).mean()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        probabilities, _ = ctx.saved_tensors
        return torch.empty_like(probabilities).mul_(upstream).to(ctx.dtype), None


def _typical_loss(outputs: tuple[Tensor, ...], target: Tensor, weights: tuple[float, ...]) -> Tensor:
    """The loss of every output that counts, and the network's own."""
    own = outputs[len(weights) :]
    total = torch.stack(own).sum() if own else torch.zeros(())
    for logits, weight in zip(outputs, weights, strict=False):
        if weight == 0:
            continue
        coarse = target.new_empty((len(target), 1, *logits.shape[2:]))
        total = total + _SoftmaxLoss.apply(logits, coarse)
    return total
