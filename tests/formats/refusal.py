"""How a refusal has to look."""

import pytest

from bnkit.core.errors import BatchNormError
from bnkit.formats import CheckpointError, read


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        read(path).verify()
    message = str(caught.value)
    assert isinstance(caught.value, BatchNormError)
    assert (
        str(path.name if path.name in message else path.parent) in message or path.stem in message
    )
    assert "\n" not in message
    assert len(message) < 900
    return message
