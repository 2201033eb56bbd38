"""A coarser configuration for images much larger than a patch, and the cascade that refines it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from autoseg.planning.batch import MINIMUM
from autoseg.planning.configuration import patch_share, plan_configuration
from autoseg.planning.situation import Situation
from autoseg.schema.fingerprint import Spacing
from autoseg.schema.plan import Configuration

# A patch that covers less of the median image than this sees too little context.
LEAST_SHARE = 0.25
# Per step of the search.
COARSENING = 1.03
# Axes this many times finer than the coarsest are coarsened first.
UNEVEN = 2.0
# A configuration that saves less than this factor of voxels is not worth training.
LEAST_SAVING = 2.0
# Steps whose images are larger than patches could ever cover need not be planned: at the same memory patches of
# another shape have nearly as many voxels.
_PATCH_GROWTH = 1.5


def plan_lowres(
    situation: Situation, fullres: Configuration, median: Sequence[float]
) -> tuple[Configuration | None, str]:
    """The 3d_lowres configuration, or None, and why.

    Args:
        median: exact median shape at full resolution.
    """
    share = patch_share(fullres, median)
    if share >= LEAST_SHARE:
        return None, f"no 3d_lowres: a patch at full resolution covers {min(share, 1):.0%} of the median image"
    spacing = fullres.spacing
    while True:
        spacing = _coarser(spacing)
        ratios = [old / new for old, new in zip(fullres.spacing, spacing, strict=True)]
        coarse = tuple(max(1, round(length * ratio)) for length, ratio in zip(median, ratios, strict=True))
        if math.prod(coarse) * LEAST_SHARE > _PATCH_GROWTH * math.prod(fullres.patch_size):
            continue
        made = plan_configuration(
            "3d_lowres",
            situation,
            spacing=spacing,
            median=coarse,
            dataset_voxels=math.prod(coarse) * situation.num_cases,
            batch_dice=False,
            why=(
                f"a patch at full resolution covers only {share:.0%} of the median image; at this spacing it covers "
                f"at least {LEAST_SHARE:.0%}",
            ),
        )
        if patch_share(made, coarse) >= LEAST_SHARE:
            break
    saving = math.prod(median) / math.prod(coarse)
    if saving < LEAST_SAVING:
        return None, f"no 3d_lowres: it would have only {saving:.1f} times fewer voxels than full resolution"
    return made, f"3d_lowres: a patch at full resolution covers only {share:.0%} of the median image"


def _coarser(spacing: Spacing) -> Spacing:
    coarsest = max(spacing)
    uneven = [coarsest / step > UNEVEN for step in spacing]
    return tuple(
        step * COARSENING if grow or not any(uneven) else step for step, grow in zip(spacing, uneven, strict=True)
    )


def plan_cascade(
    situation: Situation, fullres: Configuration, lowres: Configuration, num_foreground: int, dataset_voxels: float
) -> Configuration:
    """Full resolution again, with the low resolution's segmentation as one more channel per foreground label."""
    second = replace(
        situation,
        in_channels=situation.in_channels + num_foreground,
        patch_size=fullres.patch_size,
        # Another batch than that of full resolution is looked for only if that was more than the least.
        batch_size=fullres.batch_size if fullres.batch_size == MINIMUM else None,
    )
    made = plan_configuration(
        "3d_cascade_fullres",
        second,
        spacing=fullres.spacing,
        median=fullres.median_shape,
        dataset_voxels=dataset_voxels,
        batch_dice=fullres.batch_dice,
    )
    batch = min(made.batch_size, fullres.batch_size)
    return replace(
        made,
        batch_size=batch,
        cost=second.step_cost(made.topology, made.patch_size, batch),
        previous_stage=lowres.name,
        why=(f"refines the segmentation of {lowres.name}, which comes in as {num_foreground} more channels",),
    )
