"""Qualified names without what wrappers put before them."""

_WRAPPERS = ("module.", "_orig_mod.")


def short_name(name: str) -> str:
    """A qualified name without what wrappers put before it.

    Args:
        name: Such as "module.features.1".

    Returns:
        The name inside `DataParallel`, `AveragedModel` or a compiled module.

    Example:
        >>> short_name("module._orig_mod.features.1")
        'features.1'
    """
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return "" if name in {w[:-1] for w in _WRAPPERS} else name
