"""torch.compile behind a trial: a missing compiler must cost a warning, not a training."""

from __future__ import annotations

import torch
from torch import nn

from autoseg.log import get_logger

_LOG = get_logger(__name__)


def try_compile(network: nn.Module, example: torch.Tensor, *, precision: torch.dtype | None) -> nn.Module:
    """The compiled network if a forward and backward pass of ``example`` (b, c, *patch) work on its GPU.

    On a CPU the network is returned as it is: compiling takes minutes there and wins little.
    """
    if example.device.type != "cuda":
        return network
    try:
        compiled: nn.Module = torch.compile(network)  # type: ignore[assignment]
        with torch.autocast(example.device.type, precision, enabled=precision is not None):
            outputs = compiled(example)
            sum(output.float().mean() for output in outputs).backward()
            compiled.eval()
            with torch.inference_mode():
                compiled(example)
            compiled.train()
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        # Whatever goes wrong inside the compiler (no gcc, no Python headers, a bug), eager mode still works.
        _LOG.warning("torch.compile does not work here (%s); training goes on without it", _first_line(error))
        compiled = network.train()
    network.zero_grad(set_to_none=True)
    return compiled


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
