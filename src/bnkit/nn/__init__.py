"""Batch norm layers for PyTorch, drop-in for `torch.nn`, and the way there and back."""

from bnkit.nn import functional as functional
from bnkit.nn.batch_norm import BatchNorm1d as BatchNorm1d
from bnkit.nn.batch_norm import BatchNorm2d as BatchNorm2d
from bnkit.nn.batch_norm import BatchNorm3d as BatchNorm3d
from bnkit.nn.batch_norm_act import BatchNormAct1d as BatchNormAct1d
from bnkit.nn.batch_norm_act import BatchNormAct2d as BatchNormAct2d
from bnkit.nn.batch_norm_act import BatchNormAct3d as BatchNormAct3d
from bnkit.nn.batch_norm_axis import BatchNorm as BatchNorm
from bnkit.nn.ghost import GhostBatchNorm1d as GhostBatchNorm1d
from bnkit.nn.ghost import GhostBatchNorm2d as GhostBatchNorm2d
from bnkit.nn.ghost import GhostBatchNorm3d as GhostBatchNorm3d
from bnkit.nn.lazy import LazyBatchNorm1d as LazyBatchNorm1d
from bnkit.nn.lazy import LazyBatchNorm2d as LazyBatchNorm2d
from bnkit.nn.lazy import LazyBatchNorm3d as LazyBatchNorm3d
from bnkit.nn.naming import qualified_name as qualified_name
from bnkit.nn.parameter_rules import constrain_ as constrain_
from bnkit.nn.parameter_rules import constrain_after as constrain_after
from bnkit.nn.parameter_rules import regularization_loss as regularization_loss
from bnkit.nn.plain import plain_ as plain_
from bnkit.nn.renorm import BatchRenorm1d as BatchRenorm1d
from bnkit.nn.renorm import BatchRenorm2d as BatchRenorm2d
from bnkit.nn.renorm import BatchRenorm3d as BatchRenorm3d
from bnkit.nn.replace import Replacement as Replacement
from bnkit.nn.replace import replace_ as replace_
from bnkit.nn.replace import restore_ as restore_
