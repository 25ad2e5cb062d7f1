"""`assert_bn_healthy`: the doctor in a test; also a fixture of that name."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bnkit.doctor.diagnosis import Diagnosis


def assert_bn_healthy(model: Any, data: Any = None, **options: Any) -> "Diagnosis":
    """Fail when the doctor finds an error.

    Args:
        model: A subject of `bnkit.diagnose`.
        data: Batches, as for `bnkit.diagnose`.
        **options: Its further arguments, such as `purpose`.

    Returns:
        The diagnosis.

    Raises:
        AssertionError: With each error, its layers and its mend.
    """
    __tracebackhide__ = True
    from bnkit.doctor.diagnosing import diagnose

    diagnosis = diagnose(model, data, **options)
    if diagnosis.errors:
        lines = [diagnosis.verdict]
        for finding in diagnosis.errors:
            layers = ", ".join(finding.layers) or "the whole subject"
            lines.append(f"{finding.code} {finding.name} ({layers}): {finding.message}")
            if finding.fix is not None:
                lines.append(f"  mend: {finding.fix.text}")
        raise AssertionError("\n".join(lines))
    return diagnosis


@pytest.fixture(name="assert_bn_healthy")
def assert_bn_healthy_fixture() -> Callable[..., Any]:
    """The function `assert_bn_healthy`."""
    return assert_bn_healthy
