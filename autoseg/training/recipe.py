"""The training recipe, whole, in one place: nnU-Net's (Isensee et al. 2021; facts of version 2.8.1), mended.

================  ====================================================================================================
length            1000 epochs of 250 steps, 50 validation batches each (``TrainSettings``), or a time budget
optimizer         SGD, Nesterov momentum 0.99, weight decay 3e-5 on every parameter, gradients clipped to norm 12
learning rate     0.01, polynomial decay (1 - progress)^0.9, here per step and not per epoch (``schedule.poly``)
loss              Dice + cross-entropy, softmax; regions: Dice + binary cross-entropy (``losses/dice_ce.py``)
                  weights of deep supervision 1, 1/2, 1/4, ... over their sum (``losses/supervision.py``)
sampling          cases uniformly; the last third of a batch shows foreground, of a label drawn uniformly
augmentation      the fields of ``augment.Policy``, in the order of ``augment.apply_spatial`` and ``apply_intensity``
precision         bfloat16 or float16 where a trial shows that it is faster (``nets/device.py``), losses in float32
weights           He initialisation (``nets/blocks.py``); the last weights are the result, there is no "best" checkpoint
================  ====================================================================================================

Mended, each with a test: every sample has a generator of its own (the peer's workers share torch's); a batch of one
sees foreground in every third step (there never); foreground patches stay inside the image (there they hang over its
far borders); two outputs share the weight 2/3, 1/3 (there the second is switched off), and one output has weight 1
(there NaN); patches that turn or shrink are read exactly as large as they need to be.
"""

from __future__ import annotations

MOMENTUM = 0.99
WEIGHT_DECAY = 3e-5
CLIP_NORM = 12.0
POLY_EXPONENT = 0.9
FOREGROUND_FRACTION = 0.33
