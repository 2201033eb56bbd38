"""How much of a device's memory a training step may take."""

from __future__ import annotations

# CUDA context, the kernels of the libraries and what the display holds.
CUDA_RESERVE = 600_000_000
# The rest of the difference between bytes alive and bytes taken: fragments of the caching allocator, workspaces that
# cuDNN tries out in benchmark mode, patches on their way to the device. With these two constants a budget of 8 GB
# gives the plain U-Net nnU-Net's reference plans: 128^3 with batch 2, and 512^2 with batch 12.
CUDA_SHARE = 0.75

# Python, torch and the compiled kernels of oneDNN in the process that trains.
CPU_RESERVE = 500_000_000
# The heap's fragments and the patches that loaders hold ready.
CPU_SHARE = 0.9

# However small the memory, this share of it is for the network.
LEAST_SHARE = 0.25


def usable_memory(device: str, memory_bytes: int) -> int:
    """Bytes that may be alive at the peak of a training step when the device has (or the user gives) so many."""
    reserve, share = (CPU_RESERVE, CPU_SHARE) if device.startswith("cpu") else (CUDA_RESERVE, CUDA_SHARE)
    return int(max((memory_bytes - reserve) * share, memory_bytes * LEAST_SHARE))
