"""Batch norm on arrays: NumPy, torch, or any array-API namespace, under any specification.

State goes in and comes out; nothing is changed in place. Layouts `(N, C)`, `(N, C, L)`,
`(N, C, H, W)`, `(N, C, D, H, W)` and every other `channel_axis`, also several.
"""

from bnkit.functional.batch_norm import OnNonFinite as OnNonFinite
from bnkit.functional.batch_norm import Saved as Saved
from bnkit.functional.batch_norm import TrainResult as TrainResult
from bnkit.functional.batch_norm import batch_norm_backward as batch_norm_backward
from bnkit.functional.batch_norm import batch_norm_eval as batch_norm_eval
from bnkit.functional.batch_norm import batch_norm_train as batch_norm_train
from bnkit.functional.tensorflow import batch_normalization as batch_normalization
from bnkit.functional.tensorflow import moments as moments
