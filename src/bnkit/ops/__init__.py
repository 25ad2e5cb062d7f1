"""Batch norm on torch tensors: operators, the kernels behind them, in-place statistics."""

from bnkit.ops import schema as schema  # registers the operators and the kernels
from bnkit.ops.activation import IDENTITY as IDENTITY
from bnkit.ops.activation import Activation as Activation
from bnkit.ops.activation import activation as activation
from bnkit.ops.activation import invertible as invertible
from bnkit.ops.commit import commit_by as commit_by
from bnkit.ops.commit import commit_statistics as commit_statistics
from bnkit.ops.ghost import batch_moments as batch_moments
from bnkit.ops.ghost import ghost_batch_norm_train as ghost_batch_norm_train
from bnkit.ops.ghost import ghost_moments as ghost_moments
from bnkit.ops.ghost import ghost_normalize as ghost_normalize
from bnkit.ops.inplace import not_in_place as not_in_place
from bnkit.ops.masked import Kept as Kept
from bnkit.ops.masked import batch_norm_masked as batch_norm_masked
from bnkit.ops.masked import on_kept as on_kept
from bnkit.ops.masked import takes_mask as takes_mask
from bnkit.ops.normalize import batch_norm_eval as batch_norm_eval
from bnkit.ops.normalize import batch_norm_step as batch_norm_step
from bnkit.ops.normalize import batch_norm_train as batch_norm_train
from bnkit.ops.pooled import Pool as Pool
from bnkit.ops.pooled import batch_norm_pooled as batch_norm_pooled
from bnkit.ops.prepare import prepare as prepare
from bnkit.ops.registry import Explanation as Explanation
from bnkit.ops.registry import KernelUnavailableError as KernelUnavailableError
from bnkit.ops.registry import explain as explain
from bnkit.ops.registry import kernel_names as kernel_names
from bnkit.ops.registry import use_kernel as use_kernel
from bnkit.ops.renorm import RenormBuffers as RenormBuffers
from bnkit.ops.renorm import commit_renorm as commit_renorm
from bnkit.ops.renorm import renorm_scale_shift as renorm_scale_shift
from bnkit.ops.update import NonFinitePolicy as NonFinitePolicy
from bnkit.ops.update import StatisticsBuffers as StatisticsBuffers
from bnkit.ops.update import Update as Update
