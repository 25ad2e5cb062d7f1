"""The data is the tutorial's, and the split of the digits is honest."""

import numpy as np
import pytest
import torch

from bnkit.lab.data import digits, parabola


def test_the_parabola_is_drawn_from_the_legacy_generator_right_after_its_seed():
    np.random.seed(1)  # noqa: NPY002  the tutorial's fix_seed
    noise = np.random.normal(0, 8, (500, 1))  # noqa: NPY002
    data = parabola()
    assert np.array_equal(data.noise, noise)
    assert np.array_equal(data.y, data.x**2 - 5 + noise)
    assert (data.x[0, 0], data.x[-1, 0]) == (-7, 10)


def test_parts_are_disjoint_complete_and_of_the_same_classes():
    split = digits()
    parts = (split.train, split.val, split.test)
    images = torch.cat([p.images for p in parts]).flatten(1)
    assert len(images) == 1797
    # the data set itself holds no image twice, so that a leak would show as a repetition
    assert len(torch.unique(images, dim=0)) == 1797
    for part in parts:
        shares = torch.bincount(part.labels, minlength=10) / len(part)
        assert shares.tolist() == pytest.approx([0.1] * 10, abs=0.01)


def test_pixels_are_scaled_by_the_training_part_alone():
    split = digits()
    assert split.train.images.mean().item() == pytest.approx(0, abs=1e-5)
    assert split.train.images.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert abs(split.test.images.mean().item()) > 1e-5


def test_another_seed_is_another_split():
    assert not torch.equal(digits(0).test.labels, digits(1).test.labels)
