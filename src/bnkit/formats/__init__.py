"""Files of tensors by other frameworks, read without them; nothing in a file is executed."""

from bnkit.core.errors import CheckpointError as CheckpointError
from bnkit.formats.checkpoint import ROLES as ROLES
from bnkit.formats.checkpoint import BatchNormEntry as BatchNormEntry
from bnkit.formats.checkpoint import Checkpoint as Checkpoint
from bnkit.formats.checkpoint import StoredTensor as StoredTensor
from bnkit.formats.reading import FORMATS as FORMATS
from bnkit.formats.reading import Format as Format
from bnkit.formats.reading import read as read
