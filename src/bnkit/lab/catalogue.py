"""The experiments that can be run by name."""

from dataclasses import dataclass

from bnkit.lab.plain import Record
from bnkit.lab.record import Text


@dataclass(frozen=True, slots=True)
class Experiment(Record):
    """One experiment of the catalogue."""

    id: str
    question: Text


EXPERIMENTS = (
    Experiment(
        "mofan",
        Text(
            "Mofan's tutorial, exactly: do relu networks without batch norm die, do tanh networks "
            "saturate, and is it batch norm or the initialization?",
            "完全照莫烦的教程：没有批归一化时 relu 网络会死亡吗，tanh 网络会饱和吗？"
            "起作用的是批归一化还是初始化？",
        ),
    ),
    Experiment(
        "variance",
        Text(
            "Does the variance adjustment method, a corrected variance of small batches, help?",
            "方差修正方法（VAM），即对小批量的方差作修正，有帮助吗？",
        ),
    ),
)
