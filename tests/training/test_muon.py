"""Muon against the singular value decomposition, and against torch's own on matrices."""

from __future__ import annotations

import pytest
import torch

from autoseg.schema.architecture import Recipe
from autoseg.schema.settings import TrainSettings
from autoseg.training.muon import ADAM_SHARE, Muon, is_matrix, orthogonalized
from autoseg.training.optim import adjust_optimizer, make_optimizer
from autoseg.training.recipe import MUON, chosen_recipe, fit_to_length


@pytest.mark.parametrize("shape", [(16, 27), (64, 432), (128, 64), (32, 32)])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    # The published iteration, applied to the singular values alone.
    expected = values / values.norm()
    for _ in range(4):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    found = orthogonalized(matrix)
    torch.testing.assert_close(found, left @ torch.diag(expected) @ right, atol=2e-4, rtol=2e-3)
    largest = values > 0.2 * values[0]
    assert expected[largest].min() > 0.6
    assert expected.max() < 1.3


def test_scale_changes_nothing_and_nothing_stays_nothing() -> None:
    matrix = torch.randn(16, 40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonalized(1e-6 * matrix), orthogonalized(matrix), atol=1e-5, rtol=1e-4)
    assert torch.equal(orthogonalized(torch.zeros(16, 40)), torch.zeros(16, 40))


def test_matrices_are_updated_as_torch_does_it() -> None:
    muon = getattr(torch.optim, "Muon", None)
    if muon is None:
        pytest.skip("this torch has no Muon")
    start = torch.randn(12, 30, generator=torch.Generator().manual_seed(2))
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    first = Muon([ours], lr=0.1, momentum=0.9, weight_decay=0.05)
    second = muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.05, ns_steps=4)
    for _ in range(3):
        for parameter, optimizer in ((ours, first), (theirs, second)):
            parameter.grad = parameter.detach() ** 2 - 1
            optimizer.step()
    # Theirs computes in bfloat16.
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.02)


def test_what_is_no_matrix_is_updated_by_adam() -> None:
    kernel = torch.nn.Parameter(torch.ones(16, 4, 3, 3))
    bias, head = torch.nn.Parameter(torch.full((16,), 3.0)), torch.nn.Parameter(torch.full((3, 16, 1, 1), 3.0))
    assert [is_matrix(one) for one in (kernel, bias, head)] == [True, False, False]
    optimizer = Muon([kernel, bias, head], lr=0.5, momentum=0.9, weight_decay=0.5)
    twins = [torch.nn.Parameter(one.detach().clone()) for one in (bias, head)]
    reference = torch.optim.Adam(twins, lr=ADAM_SHARE * 0.5, betas=(0.9, 0.99))
    for _ in range(4):
        for one in (kernel, bias, head, *twins):
            one.grad = one.detach() ** 2
        optimizer.step()
        reference.step()
    for mine, other in zip((bias, head), twins, strict=True):
        torch.testing.assert_close(mine, other)


def test_its_state_is_saved_and_its_rate_is_set() -> None:
    def parameters() -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(torch.full((8, 9), 2.0)), torch.nn.Parameter(torch.full((8,), 2.0))]

    def steps(values: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, count: int) -> None:
        for number in range(count):
            adjust_optimizer(optimizer, lr=0.1 / (1 + number), momentum=0.9)
            for one in values:
                one.grad = torch.sin(one.detach() * torch.arange(one.numel()).reshape(one.shape))
            optimizer.step()

    whole, first, second = parameters(), parameters(), parameters()
    make = [make_optimizer(values, MUON) for values in (whole, first, second)]
    steps(whole, make[0], 3)
    steps(whole, make[0], 2)
    steps(first, make[1], 3)
    make[2].load_state_dict(make[1].state_dict())
    with torch.no_grad():
        for one, other in zip(second, first, strict=True):
            one.copy_(other)
    steps(second, make[2], 2)
    assert all(torch.equal(one, other) for one, other in zip(whole, second, strict=True))


def test_its_recipe_takes_larger_steps_where_they_are_few() -> None:
    recipe = chosen_recipe(Recipe(), TrainSettings(optimizer="muon"))
    assert recipe == MUON
    assert [fit_to_length(recipe, steps).lr for steps in (10_000, 1500, 750, 10)] == pytest.approx(
        [0.03, 0.03, 0.06, 0.1]
    )
    assert fit_to_length(recipe, 10).momentum == MUON.momentum
    assert chosen_recipe(Recipe(), TrainSettings(optimizer="muon", lr=0.1)).lr == 0.1
