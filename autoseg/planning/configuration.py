"""One configuration: patch, topology and batch for a spacing, within the memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autoseg.errors import SettingError
from autoseg.log import size
from autoseg.planning.batch import MINIMUM, REFERENCE, cpu_batch, dataset_limit, largest_batch
from autoseg.planning.patch import Candidate, candidates, first_fitting
from autoseg.planning.situation import Situation
from autoseg.planning.topology import plan_topology
from autoseg.schema.plan import Configuration, Resampling

# Larger patches cost a CPU more time per step than their context is worth.
CPU_PATCH_VOXELS = 2**18


def plan_configuration(
    name: str,
    situation: Situation,
    *,
    spacing: Sequence[float],
    median: Sequence[float],
    dataset_voxels: float,
    batch_dice: bool,
    why: Sequence[str] = (),
) -> Configuration:
    """Plan one configuration.

    Args:
        spacing: mm per axis of the patch, in the plan's order of axes.
        median: median shape of the cases at that spacing (halves occur).
        dataset_voxels: voxels of all cases at that spacing, for the limit of the batch.
        why: what was decided before, in words.

    Raises:
        SettingError: nothing fits into the memory, or the patch or batch of the user's does not.
    """
    chosen, patch_why = _choose_patch(situation, spacing, median, dataset_voxels)
    batch, batch_why = _choose_batch(situation, chosen, dataset_voxels)
    cost = situation.step_cost(chosen.topology, chosen.patch, batch)
    if cost.memory_bytes > situation.usable:
        raise SettingError(
            f"{name}: patch {_times(chosen.patch)} with batch {batch} needs {size(cost.memory_bytes)} in training and "
            f"{size(situation.usable)} are usable",
            hint="give more --memory, or a smaller --patch-size or --batch-size",
        )
    return Configuration(
        name=name,
        ndim=len(spacing),
        spacing=tuple(map(float, spacing)),
        median_shape=tuple(round(length) for length in median),
        patch_size=chosen.patch,
        batch_size=batch,
        normalization=situation.normalization,
        resampling=Resampling(),
        architecture=situation.architecture,
        topology=chosen.topology,
        batch_dice=batch_dice,
        cost=cost,
        why=(*why, *patch_why, *batch_why, *_explain_network(situation, chosen)),
    )


def _choose_patch(
    situation: Situation, spacing: Sequence[float], median: Sequence[float], dataset_voxels: float
) -> tuple[Candidate, list[str]]:
    if situation.patch_size is not None and len(situation.patch_size) == len(spacing):
        return _users_patch(situation, spacing), [f"patch {_times(situation.patch_size)}: given by the user"]
    options = candidates(spacing, median, situation.traits, base_width=situation.base_width)
    whole = options[0]
    small = [option for option in options if option.voxels <= CPU_PATCH_VOXELS] if situation.on_cpu else options
    limited = small or options[-1:]

    def memory(option: Candidate) -> int:
        batch = _least_batch(situation, option, dataset_voxels)
        return situation.step_cost(option.topology, option.patch, batch).memory_bytes

    found = first_fitting(limited, memory, situation.usable)
    if found is None:
        need = memory(limited[-1])
        raise SettingError(
            f"even the smallest patch, {_times(limited[-1].patch)}, needs {size(need)} in training and "
            f"{size(situation.usable)} are usable",
            hint="give more --memory, or plan another architecture",
        )
    return found, [_explain_patch(situation, found, median, whole=found == whole, first=found == limited[0])]


def _explain_patch(situation: Situation, found: Candidate, median: Sequence[float], *, whole: bool, first: bool) -> str:
    """Why this patch: ``whole`` is the largest that makes sense, ``first`` the largest that the device is given."""
    patch = _times(found.patch)
    if whole and all(length >= edge for length, edge in zip(found.patch, median, strict=True)):
        return f"patch {patch}: it covers the median image"
    if whole:
        return f"patch {patch}: equal edges in mm, the size from which the search starts, and it fits"
    if first:
        return f"patch {patch}: on a CPU more voxels would cost more time per step than their context is worth"
    text = f"patch {patch}: the largest in the proportions of the median image that fits into {size(situation.usable)}"
    if situation.on_cpu or situation.batch_size is not None:
        return text
    return f"{text} with a batch of {REFERENCE[len(found.patch)]}"


def _users_patch(situation: Situation, spacing: Sequence[float]) -> Candidate:
    patch = situation.patch_size or ()
    if min(patch) < 1:
        raise SettingError(f"a patch of {_times(patch)} is not possible", hint="give --patch-size in voxels")
    topology, padded = plan_topology(spacing, patch, situation.traits, base_width=situation.base_width)
    least = situation.traits.min_stages
    if topology.num_stages < least:
        times = "even once" if least == 2 else f"{least - 1} times, as {situation.architecture.name} needs it"
        edge = situation.traits.minimum_edge * 2 ** (least - 1)
        raise SettingError(
            f"a patch of {_times(patch)} is too small to be halved {times}",
            hint=f"give at least two axes of {edge} voxels or more",
        )
    if padded != patch:
        raise SettingError(
            f"the patch {_times(patch)} is not a multiple of {_times(topology.divisor)}, the divisor of its network",
            hint=f"give --patch-size {','.join(map(str, padded))}",
        )
    return Candidate(patch, topology)


def _least_batch(situation: Situation, option: Candidate, dataset_voxels: float) -> int:
    """The batch for which a patch has to leave room."""
    if situation.batch_size is not None:
        return situation.batch_size
    wanted = cpu_batch(option.patch) if situation.on_cpu else REFERENCE[len(option.patch)]
    return min(wanted, dataset_limit(option.patch, dataset_voxels))


def _choose_batch(situation: Situation, chosen: Candidate, dataset_voxels: float) -> tuple[int, list[str]]:
    limit = dataset_limit(chosen.patch, dataset_voxels)
    if situation.batch_size is not None:
        return situation.batch_size, [f"batch {situation.batch_size}: given by the user"]
    wanted = min(limit, cpu_batch(chosen.patch)) if situation.on_cpu else limit

    def memory(batch: int) -> int:
        return situation.step_cost(chosen.topology, chosen.patch, batch).memory_bytes

    known = max(_least_batch(situation, chosen, dataset_voxels), 2 * MINIMUM)
    batch = largest_batch(memory, situation.usable, wanted, known=known)
    if batch < wanted:
        return batch, [f"batch {batch}: the largest that fits into {size(situation.usable)}"]
    if batch == MINIMUM:
        return batch, [f"batch {batch}: the least, because the gradient of a single patch is too noisy"]
    if batch < limit:
        return batch, [
            f"batch {batch}: enough voxels for a stable step ({batch * chosen.voxels:,}); on a CPU more only costs time"
        ]
    return batch, [f"batch {batch}: 5% of all voxels of the dataset; more would repeat the same images within a step"]


def _explain_network(situation: Situation, chosen: Candidate) -> list[str]:
    topology = chosen.topology
    edges = [length // step for length, step in zip(chosen.patch, topology.divisor, strict=True)]
    uneven = len({tuple(stride) for stride in topology.strides[1:]}) > 1
    exception = "; coarse or short axes are halved less often" if uneven else ""
    lines = [f"{topology.num_stages} stages: axes are halved until {_times(edges)} voxels are left{exception}"]
    if situation.on_cpu and situation.base_width < situation.traits.base_width:
        lines.append(
            f"width {situation.base_width} instead of {situation.traits.base_width}: on a CPU more samples in the same "
            "time are worth more than width"
        )
    return lines


def _times(lengths: Sequence[int]) -> str:
    return "x".join(map(str, lengths))


def patch_share(configuration: Configuration, median: Sequence[float]) -> float:
    """Voxels of the patch as a share of the median image."""
    return math.prod(configuration.patch_size) / math.prod(median)
