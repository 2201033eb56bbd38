"""How much each training output of a network counts in the loss."""

from __future__ import annotations

from autoseg.errors import SettingError


def halving_weights(num_outputs: int) -> tuple[float, ...]:
    """The weight of each output, finest first: halved at every step, summing to 1.

    The coarsest of three or more counts nothing, as in nnU-Net. Of one or two all count: without the coarsest a
    network of three stages would have no deep supervision left, and one of two stages no loss.

    Raises:
        SettingError: fewer than one output.
    """
    if num_outputs < 1:
        raise SettingError(f"a network needs at least one output, not {num_outputs}")
    weights = [0.5**level for level in range(num_outputs)]
    if num_outputs >= 3:
        weights[-1] = 0.0
    return tuple(weight / sum(weights) for weight in weights)


def equal_weights(num_outputs: int) -> tuple[float, ...]:
    """Equal weights that sum to 1, for outputs that all have the finest resolution."""
    return (1 / num_outputs,) * num_outputs
