"""Shares are rounded half up on their decimal value."""

from statistics import fmean

import pytest

from bnkit.lab.shares import percent, points


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.2125, "21.3 %"),
        (fmean([0.2125, 0.2125, 0.2125]), "21.3 %"),
        (0.21249999999999997, "21.3 %"),
        (0.2124, "21.2 %"),
        (0.99, "99.0 %"),
        (0.0, "0.0 %"),
        (1.0, "100.0 %"),
        (1e-9, "0.0 %"),
    ],
)
def test_one_decimal(share, text):
    assert percent(share, 1) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.545, "55 %"), (0.125, "13 %"), (0.005, "1 %"), (0.004, "<1 %"), (0.999, ">99 %")],
)
def test_whole(share, text):
    assert percent(share) == text


def test_points_have_no_sign():
    assert points(0.0335) == "3.4"
