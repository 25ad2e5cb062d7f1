"""All rules by code."""

from functools import cache
from importlib import import_module
from importlib.resources import files
from pkgutil import iter_modules

from bnkit.core.errors import SpecError
from bnkit.doctor.rule import Rule


@cache
def all_rules() -> dict[str, Rule]:
    """Every rule by code, in order of the codes.

    Returns:
        The rules; each lives in a file of its own in `bnkit.doctor.rules`.

    Example:
        >>> from bnkit.doctor import all_rules
        >>> all_rules()["BN201"].name
        'stats-at-init'
    """
    package = import_module("bnkit.doctor.rules")
    modules = [
        import_module(f"{package.__name__}.{m.name}") for m in iter_modules(package.__path__)
    ]
    found = [v for m in modules for v in vars(m).values() if isinstance(v, Rule)]
    return {one.code: one for one in sorted(found, key=lambda one: one.code)}


def find_rule(code: str) -> Rule:
    """The rule with this code or name.

    Args:
        code: Such as "BN201", "bn201" or "stats-at-init".

    Returns:
        The rule.

    Raises:
        SpecError: There is none.
    """
    wanted = code.strip()
    for one in all_rules().values():
        if wanted.upper() == one.code or wanted.lower() == one.name:
            return one
    near = [c for c in all_rules() if c[:3] == wanted.upper()[:3]] or list(all_rules())
    msg = f"{code!r}: expected the code or the name of a rule. Known: {', '.join(near)}."
    raise SpecError(msg)


def chinese_page(code: str) -> str | None:
    """The page of a rule in Chinese.

    Args:
        code: Of the rule.

    Returns:
        Markdown, or None where there is no translation.
    """
    path = files("bnkit.doctor").joinpath("pages_zh", f"{code}.md")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None
