"""The errors and warnings of bnkit: where, what was expected, what was got, what to do."""


class BatchNormError(Exception):
    """Base of every error that bnkit raises on purpose."""


class InputError(BatchNormError, ValueError, RuntimeError):
    """An array or tensor that a batch norm cannot take.

    `torch.nn` raises `ValueError` for some bad inputs (rank, one value per channel) and
    `RuntimeError` for others (channel count, dtype), so code that catches either keeps working.
    """


class CheckpointError(InputError):
    """A file of tensors that is damaged, hostile, or of a kind that is not read."""


class SpecError(BatchNormError, ValueError):
    """An unknown specification, or a field with an impossible value."""


class NonFiniteError(BatchNormError, ArithmeticError):
    """Batch statistics hold NaN or infinity where the caller asked to be stopped."""


class ConversionError(BatchNormError, TypeError):
    """A module or state that cannot be replaced or converted without losing behaviour."""


class FoldError(BatchNormError, ValueError):
    """A model that cannot be folded, or a folded one that does not compute the same."""


class SynchronizationError(BatchNormError, RuntimeError):
    """Processes that normalize one batch together disagree, or one of them does not answer."""


class PolicyError(BatchNormError, ValueError):
    """A statistics policy that does not exist, or that a layer cannot have."""


class CertificateError(BatchNormError, ValueError):
    """A guarantee was asked for that nothing would stand behind."""


class OutputError(BatchNormError, OSError):
    """A result that cannot be written where it was asked for."""


class BatchNormWarning(UserWarning):
    """Base of every warning that bnkit gives."""


class NonFiniteWarning(BatchNormWarning):
    """A batch held NaN or infinity; the running statistics were left alone."""


class EmptyBatchWarning(BatchNormWarning):
    """A batch held no samples; the running statistics were left alone."""


class FrozenWarning(BatchNormWarning):
    """A frozen layer was asked to change its running statistics; they were left alone."""


class UnsettledWarning(BatchNormWarning):
    """Statistics that depend on each other still changed when the passes were over."""
