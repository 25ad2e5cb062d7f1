"""The byte formula, and the suite of shapes."""

import pytest

from bnkit.bench.shapes import SHAPES, TINY, shapes_of
from bnkit.bench.traffic import copy_bytes, floor_bytes

B = 4 * 6 * 5 * 4  # bytes of float32 (4, 6, 5)


@pytest.mark.parametrize(
    ("operator", "direction", "arrays"),
    [
        ("bn", "forward", 2),
        ("bn", "eval", 2),
        ("bn", "backward", 3),
        ("bn", "forward_backward", 5),
        ("bn_relu", "forward_backward", 5),
        ("bn_add_relu", "forward", 3),
        ("bn_add_relu", "backward", 5),
        ("bn_add_relu", "forward_backward", 8),
    ],
)
def test_floor_counts_every_array_once(operator, direction, arrays):
    assert floor_bytes(operator, direction, (4, 6, 5)) == arrays * B


def test_bytes_follow_the_size_of_a_value():
    assert copy_bytes((4, 6, 5)) == 2 * B
    assert floor_bytes("bn", "forward", (4, 6, 5), 8) == 4 * B


def test_the_suite_comes_from_four_networks_at_every_level():
    networks = {"ResNet-50", "MobileNetV2", "U-Net", "MLP"}
    assert {s.network for s in SHAPES} == networks
    assert {s.network for s in shapes_of("normal")} == networks
    assert set(shapes_of("quick")) < set(shapes_of("normal")) < set(shapes_of("full"))
    assert len({s.sizes for s in (*SHAPES, TINY)}) == len(SHAPES) + 1


def test_two_dimensions_have_one_memory_format():
    assert TINY.formats == ("contiguous",)
    assert SHAPES[0].formats == ("contiguous", "channels_last")
