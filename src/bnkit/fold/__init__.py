"""Batch norms folded into their neighbours, with a proof. The package itself is the verb."""

import sys
from types import ModuleType
from typing import Any

from bnkit.fold.call import fold as fold
from bnkit.fold.call import fold_ as fold_
from bnkit.fold.result import Folding as Folding
from bnkit.fold.result import FoldRecord as FoldRecord
from bnkit.fold.result import WeightRanges as WeightRanges
from bnkit.fold.unfolding import unfold as unfold


class _Verb(ModuleType):
    """`bnkit.fold(...)` works whatever was imported first: the package is called like its verb."""

    def __call__(self, *args: Any, **kwargs: Any) -> Folding:
        return fold(*args, **kwargs)


_Verb.__call__.__doc__ = fold.__doc__
sys.modules[__name__].__class__ = _Verb
