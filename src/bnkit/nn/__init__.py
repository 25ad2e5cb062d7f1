"""Batch norm layers for PyTorch, drop-in for `torch.nn`, and the way there and back."""

from bnkit.nn import functional as functional
from bnkit.nn.accumulate import accumulate as accumulate
from bnkit.nn.accumulate_exactly import accumulate_exactly as accumulate_exactly
from bnkit.nn.batch_norm import BatchNorm1d as BatchNorm1d
from bnkit.nn.batch_norm import BatchNorm2d as BatchNorm2d
from bnkit.nn.batch_norm import BatchNorm3d as BatchNorm3d
from bnkit.nn.batch_norm_act import BatchNormAct1d as BatchNormAct1d
from bnkit.nn.batch_norm_act import BatchNormAct2d as BatchNormAct2d
from bnkit.nn.batch_norm_act import BatchNormAct3d as BatchNormAct3d
from bnkit.nn.convert_sync import convert_sync_batchnorm as convert_sync_batchnorm
from bnkit.nn.convert_sync import revert_sync_batchnorm as revert_sync_batchnorm
from bnkit.nn.lazy import LazyBatchNorm1d as LazyBatchNorm1d
from bnkit.nn.lazy import LazyBatchNorm2d as LazyBatchNorm2d
from bnkit.nn.lazy import LazyBatchNorm3d as LazyBatchNorm3d
from bnkit.nn.masked import MaskedBatchNorm1d as MaskedBatchNorm1d
from bnkit.nn.masked import MaskedBatchNorm2d as MaskedBatchNorm2d
from bnkit.nn.masked import MaskedBatchNorm3d as MaskedBatchNorm3d
from bnkit.nn.naming import qualified_name as qualified_name
from bnkit.nn.replace import Replacement as Replacement
from bnkit.nn.replace import replace_ as replace_
from bnkit.nn.replace import restore_ as restore_
from bnkit.nn.sync import SyncBatchNorm as SyncBatchNorm
