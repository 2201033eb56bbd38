"""Instance normalisation and its activation on a CPU, in place: one map is kept for backward where torch keeps two.

Both are undone from the result, as in Rota Bulò et al. 2018 ("In-place activated BatchNorm"): with z = gamma u + beta
and y = LeakyReLU(z), the normalised map u follows from y, which the next convolution keeps anyway. The gradient is
written over that map. torch's instance norm also copies channels-last maps, a fifth of a step; here every sample goes
through the kernel of batch normalisation, which reads them as they are and sums bfloat16 in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
_TYPES = (torch.bfloat16, torch.float32, torch.float64)
# u = (z - beta) / gamma magnifies the rounding of z by beta / gamma: where that is large, the input is kept instead.
_LARGEST_OFFSET = 8.0


def normalize_and_activate(x: Tensor, norm: nn.Module, act: nn.Module) -> Tensor:
    """``act(norm(x))`` for the output of a convolution, (b, c, *spatial), which may be overwritten.

    The lean way is taken for instance norm with LeakyReLU or nothing behind it, channels last, on a CPU; torch's own
    modules everywhere else and while a graph is captured.
    """
    slope = _slope(act)
    if slope is None or not isinstance(norm, nn.InstanceNorm2d | nn.InstanceNorm3d) or not _is_lean(x, norm):
        activated: Tensor = act(norm(x))
        return activated
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = _InstanceNormAct.apply(x, norm.weight, norm.bias, norm.eps, slope)
        return y
    return _forward(x, norm.weight, norm.bias, norm.eps, slope, out=x)[0]


def _slope(act: nn.Module) -> float | None:
    if isinstance(act, nn.Identity):
        return 1.0
    return act.negative_slope if isinstance(act, nn.LeakyReLU) and act.negative_slope > 0 else None


def _is_lean(x: Tensor, norm: nn.InstanceNorm2d | nn.InstanceNorm3d) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in _TYPES
        and x.ndim in _LAYOUTS
        and x.shape[1] > 1
        and x.shape[2:].numel() > 1
        and x.is_contiguous(memory_format=_LAYOUTS[x.ndim])
        and norm.affine
        and not norm.track_running_stats
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[no-untyped-call]
    )


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float, *, out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``out`` (may be ``x``) filled, and mean and 1 / standard deviation (b, c) of every sample."""
    means, scales = normalize_samples(x, weight, bias, eps, out=out)
    if slope != 1.0:
        F.leaky_relu_(out, slope)
    return out, means, scales


def normalize_samples(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, out: Tensor
) -> tuple[Tensor, Tensor]:
    """Instance normalisation of (b, c, *spatial) into ``out``, which may be ``x``, without a change of layout.

    Returns:
        Mean and 1 / standard deviation (b, c) of every channel, float64 for such an input and else float32.
    """
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    means, scales = x.new_empty((2, *x.shape[:2]), dtype=kind)
    for sample, target, mean, scale in zip(x.split(1), out.split(1), means, scales, strict=True):
        torch.ops.aten.native_batch_norm.out(
            sample, weight, bias, None, None, True, 0.0, eps, out=target, save_mean=mean, save_invstd=scale
        )
    return means, scales


class _InstanceNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        undone = bool((bias.abs() < _LARGEST_OFFSET * weight.abs()).all())
        out = x if undone else torch.empty_like(x)
        y, mean, scale = _forward(x, weight, bias, eps, slope, out=out)
        ctx.eps, ctx.slope, ctx.undone = eps, slope, undone
        if undone:
            ctx.mark_dirty(x)
            ctx.save_for_backward(y, weight, bias, scale)
        else:
            ctx.save_for_backward(x, weight, bias, scale, y, mean)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight, bias, scale, *rest = ctx.saved_tensors
        y = kept if ctx.undone else rest[0]
        # Whatever read the kept map has had its turn, so the gradient takes its place: no fresh map.
        by_x = torch.empty_like(kept) if _graph_is_kept() else kept
        by_weight, by_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        # Room for one sample at a time.
        bent, straight = torch.empty_like(y[:1]), torch.empty_like(y[:1])
        for i in range(len(y)):
            one = slice(i, i + 1)
            gradient, x = upstream[one], kept[one]
            if ctx.slope == 1.0:
                gradient = gradient.contiguous(memory_format=_LAYOUTS[y.ndim])
            else:
                gradient = torch.ops.aten.leaky_relu_backward.grad_input(
                    gradient, y[one], ctx.slope, True, grad_input=bent
                )
            if ctx.undone:
                # The kernel's own formula with z for x, beta for the mean, and 1 / gamma for the scale of x.
                if ctx.slope != 1.0:
                    x = torch.ops.aten.leaky_relu.out(x, 1 / ctx.slope, out=straight)
                inner, centre, width = weight.square() * scale[i], bias, weight.reciprocal()
            else:
                inner, centre, width = weight, rest[1][i], scale[i]
            by_sample, dw, db = torch.ops.aten.native_batch_norm_backward(
                gradient, x, inner, None, None, centre, width, True, ctx.eps, [True, True, True]
            )
            by_x[one] = by_sample
            by_weight += dw
            by_bias += db
        return by_x, by_weight, by_bias, None, None


def _graph_is_kept() -> bool:
    """Whether another backward may go through the same graph (``retain_graph``)."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())
