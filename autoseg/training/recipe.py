"""The training recipe, whole, in one place: nnU-Net's (Isensee et al. 2021; facts of version 2.8.1), mended.

An architecture may declare another optimizer, learning rate, schedule and clipping (``traits.recipe`` of its class,
from its paper), and flags of ``autoseg_train`` override either. What the plain U-Net declares:

================  ====================================================================================================
length            1000 epochs of 250 steps, 50 validation batches each (``TrainSettings``), or a time budget
optimizer         SGD, Nesterov momentum 0.99, weight decay 3e-5 on every parameter, gradients clipped to norm 12
learning rate     0.01, polynomial decay (1 - progress)^0.9, here per step and not per epoch (``schedule.poly``)
loss              Dice + cross-entropy, softmax; regions: Dice + binary cross-entropy (``losses/dice_ce.py``)
                  weights of deep supervision 1, 1/2, 1/4, ... over their sum (``losses/supervision.py``)
sampling          cases uniformly; the last third of a batch shows foreground, of a label drawn uniformly
augmentation      the fields of ``augment.Policy``, in the order of ``augment.cut`` and ``apply_intensity``; what does
                  not turn is mirrored last
precision         bfloat16 or float16 where a trial shows that it is faster (``nets/device.py``), losses in float32
weights           He initialisation (``nets/blocks.py``); the last weights are the result, there is no "best" checkpoint
================  ====================================================================================================
With a time budget networks that declare this recipe are trained with Muon (``MUON``, ``training/muon.py``), which sees
something after tens of steps where SGD with momentum takes hundreds.

Mended, each with a test: momentum and rate fit a training of few steps (``fit_to_length``); every sample has a
generator of its own (the peer's workers share torch's); a batch of one sees foreground in every third step (there
never); foreground patches stay inside the image (there they hang over its far borders); two outputs share the weight
2/3, 1/3 (there the second is switched off), and one output has weight 1 (there NaN); patches that turn or shrink are
read exactly as large as they need to be.
"""

from __future__ import annotations

from dataclasses import replace

from autoseg.schema.architecture import Recipe
from autoseg.schema.settings import TrainSettings

POLY_EXPONENT = 0.9
# From so many steps on a recipe holds as it is declared: papers train for tens of thousands.
LONG = 2500
# Steps that momentum averages over; fewer than ten would leave the noise of single batches.
LEAST_HORIZON = 10
# A short training with Adam takes larger steps, but not beyond this rate.
LARGEST_ADAM_RATE = 1e-3
FOREGROUND_FRACTION = 0.33
# What a plain U-Net learns fastest with: 0.866 after three minutes of the hippocampus, SGD 0.842 (docs/benchmarks.md).
MUON = Recipe(optimizer="muon", lr=0.03, weight_decay=0.05, momentum=0.9, warmup=0.03)
# In fewer steps than this Muon takes larger ones: 150 and 370 steps of CT gain much by it, and 550 of the hippocampus
# lose nothing (docs/benchmarks.md).
MUON_LONG = 1500
LARGEST_MUON_RATE = 0.1

# Longer trainings keep what papers train with: nobody compared them here.
MUON_STEPS = 25_000


def recipe_in_time(recipe: Recipe, settings: TrainSettings, *, steps: float) -> Recipe:
    """The recipe for a time budget of about so many steps: Muon, unless the user or the architecture has a wish."""
    asked = (settings.optimizer, settings.lr, settings.weight_decay, settings.warmup)
    if recipe != Recipe() or any(one is not None for one in asked) or steps > MUON_STEPS:
        return recipe
    return MUON


def chosen_recipe(declared: Recipe, settings: TrainSettings) -> Recipe:
    """The architecture's recipe with what the user's flags change.

    Another optimizer brings its own learning rate and momentum, because those of SGD make no sense for Adam.
    """
    if settings.optimizer in {None, declared.optimizer}:
        recipe = declared
    elif settings.optimizer == MUON.optimizer:
        recipe = MUON
    else:
        usual = Recipe() if settings.optimizer == "sgd" else Recipe(lr=3e-4, momentum=0.9)
        recipe = replace(declared, optimizer=str(settings.optimizer), lr=usual.lr, momentum=usual.momentum)
    return replace(
        recipe,
        lr=recipe.lr if settings.lr is None else settings.lr,
        weight_decay=recipe.weight_decay if settings.weight_decay is None else settings.weight_decay,
        warmup=recipe.warmup if settings.warmup is None else settings.warmup,
        fitted=recipe.fitted and settings.lr is None,
    )


def fit_to_length(recipe: Recipe, steps: float) -> Recipe:
    """The recipe for a training of ``steps`` steps.

    A momentum of 0.99 averages over a hundred steps and needs thousands to pay; within a few hundred it finds nothing
    (on the hippocampus data: Dice 0 after 240 steps, and 0.79 after 150 with this rule). SGD keeps the product of
    rate and averaged steps; Adam and Muon get a rate in proportion to what the length falls short of.
    """
    if not recipe.fitted or steps >= LONG:
        return recipe
    if recipe.optimizer != "sgd":
        is_muon = recipe.optimizer == MUON.optimizer
        enough, largest = (MUON_LONG, LARGEST_MUON_RATE) if is_muon else (LONG, LARGEST_ADAM_RATE)
        rate = min(recipe.lr * enough / max(steps, 1.0), largest)
        return replace(recipe, lr=max(recipe.lr, rate))
    declared = 1.0 / (1.0 - recipe.momentum)
    horizon = min(declared, max(LEAST_HORIZON, declared * steps / LONG))
    return replace(recipe, momentum=1.0 - 1.0 / horizon, lr=recipe.lr * declared / horizon)
