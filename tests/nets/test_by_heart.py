"""Every network learns two real images by heart, with the optimizer that it declares. Slow."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg.io.images import read_image
from autoseg.losses import segmentation_loss
from autoseg.nets import traits_of
from autoseg.schema.dataset import Label, Labels
from autoseg.training.optim import adjust_optimizer, make_optimizer
from autoseg.training.recipe import fit_to_length
from autoseg.training.schedule import learning_rate
from tests.nets.zoo import NAMES, build, planned

LABELS = Labels(foreground=(Label(name="structure", values=(1,)),))
STEPS = 600
EDGE = {2: 96, 3: 32}


def pair(ndim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two nuclei pictures (blue channel) or two hippocampi, cut around their middle, and their masks."""
    default = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("AUTOSEG_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip("no real data: set AUTOSEG_TEST_DATA to the folder that holds it")
    folder = folder / {2: "Dataset121_DSB2018", 3: "Dataset004_Hippocampus"}[ndim]
    images, masks = [], []
    for path in sorted((folder / "labelsTr").iterdir())[:2]:
        stem, ending = path.name.split(".", 1)
        found = sorted((folder / "imagesTr").glob(f"{stem}_0000.{ending}"))
        mask = read_image(path).data[0]
        image = read_image(found[0]).data[0].astype(np.float32)
        cut = tuple(slice(max(0, (size - EDGE[ndim]) // 2), (size + EDGE[ndim]) // 2) for size in mask.shape)
        image, mask = image[cut], mask[cut] > 0
        whole = (1, EDGE[2], EDGE[2]) if ndim == 2 else (EDGE[3],) * 3
        space = [(0, size - length) for size, length in zip(whole, mask.shape, strict=True)]
        image = np.pad((image - image.mean()) / image.std(), space)
        images.append(image if ndim == 3 else image[0])
        masks.append(np.pad(mask, space) if ndim == 3 else np.pad(mask, space)[0])
    return torch.from_numpy(np.stack(images))[:, None], torch.from_numpy(np.stack(masks))[:, None].long()


@pytest.mark.slow
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_two_real_images_are_learned_by_heart(name: str, ndim: int) -> None:
    traits = traits_of(name)
    if ndim not in traits.ndims:
        pytest.skip(f"{name} has no meaning with {ndim} axes")
    images, target = pair(ndim)
    topology, patch = planned(name, (1,) * ndim, (EDGE[ndim],) * ndim, divisor=1)
    assert patch == (EDGE[ndim],) * ndim
    network = build(name, topology, patch, channels=1, heads=2).train()
    loss = segmentation_loss(LABELS, batch_dice=True, weights=network.output_weights)
    recipe = fit_to_length(traits.recipe, STEPS)
    optimizer = make_optimizer(network.parameters(), recipe)
    dice = 0.0
    for step in range(STEPS):
        adjust_optimizer(optimizer, lr=learning_rate(recipe, step / STEPS), momentum=recipe.momentum)
        optimizer.zero_grad(set_to_none=True)
        loss(network(images), target).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
        optimizer.step()
        if step % 20 == 19:
            with torch.no_grad():
                found = network.eval()(images)[0].argmax(1, keepdim=True)
            network.train()
            dice = float(2 * (found * target).sum() / (found.sum() + target.sum()))
            if dice > 0.95:
                return
    pytest.fail(f"Dice {dice:.3f} after {STEPS} steps")
