"""The shapes that are measured, each with the network it comes from."""

from typing import Literal, NamedTuple

Level = Literal["quick", "normal", "full"]
MemoryFormat = Literal["contiguous", "channels_last"]

_LEVELS: tuple[Level, ...] = ("quick", "normal", "full")


class Shape(NamedTuple):
    """The input of one batch norm.

    Attributes:
        network: The network that has it.
        sizes: (n, c) or (n, c, height, width).
        place: Where in the network.
        level: The smallest run that measures it.
    """

    network: str
    sizes: tuple[int, ...]
    place: str
    level: Level = "normal"

    @property
    def formats(self) -> tuple[MemoryFormat, ...]:
        """The memory formats it can have; two dimensions have one."""
        return ("contiguous", "channels_last") if len(self.sizes) == 4 else ("contiguous",)


# ResNet-50 and MobileNetV2 at 3x224x224, the U-Net at 256x256; the batch is what two cores train.
SHAPES = (
    Shape("ResNet-50", (16, 64, 112, 112), "stem", "full"),
    Shape("ResNet-50", (32, 64, 56, 56), "stage 1, bottleneck", "quick"),
    Shape("ResNet-50", (16, 256, 56, 56), "stage 1, end of a block"),
    Shape("ResNet-50", (16, 128, 28, 28), "stage 2, bottleneck"),
    Shape("ResNet-50", (16, 512, 28, 28), "stage 2, end of a block", "full"),
    Shape("ResNet-50", (16, 256, 14, 14), "stage 3, bottleneck", "quick"),
    Shape("ResNet-50", (16, 1024, 14, 14), "stage 3, end of a block"),
    Shape("ResNet-50", (8, 2048, 7, 7), "stage 4, end of a block", "quick"),
    Shape("MobileNetV2", (16, 32, 112, 112), "stem"),
    Shape("MobileNetV2", (16, 96, 112, 112), "block 2, expansion", "full"),
    Shape("MobileNetV2", (16, 24, 56, 56), "block 2, projection"),
    Shape("MobileNetV2", (16, 144, 56, 56), "block 3, expansion", "full"),
    Shape("MobileNetV2", (16, 192, 28, 28), "block 5, expansion", "quick"),
    Shape("MobileNetV2", (16, 576, 14, 14), "block 12, expansion"),
    Shape("MobileNetV2", (16, 960, 7, 7), "block 15, expansion"),
    Shape("U-Net", (4, 64, 256, 256), "first level", "full"),
    Shape("U-Net", (4, 128, 128, 128), "second level"),
    Shape("U-Net", (4, 256, 64, 64), "third level"),
    Shape("U-Net", (4, 512, 32, 32), "fourth level", "full"),
    Shape("MLP", (256, 1024), "hidden layer", "quick"),
    Shape("MLP", (1024, 512), "hidden layer"),
)

TINY = Shape("tiny", (32, 64), "overhead")


def shapes_of(level: Level) -> tuple[Shape, ...]:
    """The shapes of a run.

    Args:
        level: "quick", "normal" or "full".

    Returns:
        The shapes of that level and of those below.

    Example:
        >>> [len(shapes_of(level)) for level in ("quick", "normal", "full")]
        [5, 15, 21]
    """
    wanted = _LEVELS[: _LEVELS.index(level) + 1]
    return tuple(shape for shape in SHAPES if shape.level in wanted)
