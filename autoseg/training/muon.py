"""Muon: momentum whose updates are orthogonal matrices (Jordan et al. 2024, "Muon: an optimizer for hidden layers").

A convolution's kernel (out, in, *kernel) is one matrix (out, in x kernel). Its update has singular values near 1, so
that directions which the gradient hardly shows are learnt as fast as those that fill it: in a training of few steps
that is what counts (docs/benchmarks.md). Everything that is no such matrix, norms, biases and the output layers of few
labels, is updated by Adam at a tenth of the rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# The quintic of the paper: after a few steps singular values lie between 0.7 and 1.2, near enough to 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_STEPS = 4
# Orthogonality means nothing where a matrix has fewer rows or columns than this.
_LEAST_EDGE = 8
# Adam's share of the learning rate, its betas and its epsilon.
ADAM_SHARE = 0.1
_BETAS = (0.9, 0.99)
_EPSILON = 1e-8


class Muon(torch.optim.Optimizer):
    """One group of matrices, one of everything else; ``lr`` and ``momentum`` are those of the matrices.

    Args:
        weight_decay: decoupled, in shares of the learning rate, of the matrices only.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float) -> None:
        every = list(parameters)
        matrices = [one for one in every if is_matrix(one)]
        others = [one for one in every if not is_matrix(one)]
        groups: list[dict[str, Any]] = [{"params": matrices, "momentum": momentum}, {"params": others}]
        super().__init__([group for group in groups if group["params"]], {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            for one in group["params"]:
                if one.grad is None:
                    continue
                if "momentum" in group:
                    self._turn(one, one.grad, group)
                else:
                    self._adam(one, one.grad, ADAM_SHARE * group["lr"])

    def _turn(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, momentum, lr = self.state[weight], group["momentum"], group["lr"]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        average = state["momentum"].mul_(momentum).add_(gradient)
        update = orthogonalized(gradient.add(average, alpha=momentum).flatten(1))
        rows, columns = update.shape
        weight.mul_(1 - lr * group["weight_decay"])
        weight.add_(update.view(weight.shape), alpha=-lr * max(1.0, rows / columns) ** 0.5)

    def _adam(self, weight: Tensor, gradient: Tensor, lr: float) -> None:
        state = self.state[weight]
        if not state:
            state.update(step=0, first=torch.zeros_like(weight), second=torch.zeros_like(weight))
        state["step"] += 1
        first = state["first"].lerp_(gradient, 1 - _BETAS[0]) / (1 - _BETAS[0] ** state["step"])
        second = state["second"].lerp_(gradient.square(), 1 - _BETAS[1]) / (1 - _BETAS[1] ** state["step"])
        weight.sub_(first / (second.sqrt() + _EPSILON), alpha=lr)


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter has rows and columns enough to be orthogonal."""
    if parameter.ndim < 2:
        return False
    rows = parameter.shape[0]
    return min(rows, parameter.numel() // rows) >= _LEAST_EDGE


def _polynomial(gram: Tensor) -> Tensor:
    a, b, c = _QUINTIC
    found = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    found.diagonal().add_(a)
    return found


def orthogonalized(matrix: Tensor) -> Tensor:
    """A matrix (m, n) with the same singular vectors and singular values near 1.

    The iteration of the paper multiplies by polynomials of X X^T; they are gathered in the smaller of both sides, so
    that the long side takes part in two products only.
    """
    rows, columns = matrix.shape
    x = matrix if rows <= columns else matrix.T
    x = x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)
    gram = x @ x.T
    product = update = _polynomial(gram)
    for _ in range(_STEPS - 1):
        gram = update @ gram @ update
        update = _polynomial(gram)
        product = update @ product
    x = product @ x
    return x if rows <= columns else x.T.contiguous()
