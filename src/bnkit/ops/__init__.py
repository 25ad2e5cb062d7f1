"""Batch norm on torch tensors: the core, made differentiable and given in-place statistics."""

from bnkit.ops.commit import NonFinitePolicy as NonFinitePolicy
from bnkit.ops.commit import StatisticsBuffers as StatisticsBuffers
from bnkit.ops.commit import commit_statistics as commit_statistics
from bnkit.ops.normalize import batch_norm_eval as batch_norm_eval
from bnkit.ops.normalize import batch_norm_train as batch_norm_train
