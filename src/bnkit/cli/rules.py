"""`bnkit explain` and `bnkit rules`: the pages of the rules, offline."""

import json
from typing import Annotated

from cyclopts import Parameter

from bnkit.cli.console import Language, language
from bnkit.cli.console import out as console


def explain(code: str, *, lang: Language | None = None) -> None:
    """Print the page of a rule.

    Args:
        code: Code or name, such as BN201 or stats-at-init.
        lang: Language of the page: en or zh. By default that of the locale.
    """
    from bnkit.doctor.catalogue import chinese_page, find_rule

    one = find_rule(code)
    page = chinese_page(one.code) if language(lang) == "zh" else None
    title = f"{one.code} {one.name}"
    console().print(f"{title}\n{'=' * len(title)}\n\n{page or one.page}")


def rules(*, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """List the rules: code, name, what they need, when they apply.

    Args:
        as_json: Print JSON.
    """
    from bnkit.doctor.catalogue import all_rules

    table = [
        {
            "code": one.code,
            "name": one.name,
            "summary": one.summary,
            "needs": list(one.needs),
            "purposes": list(one.purposes),
            "starred": one.starred,
            "default": not one.info,
        }
        for one in all_rules().values()
    ]
    if as_json:
        console().print(json.dumps(table, indent=2, ensure_ascii=False))
        return
    for row in table:
        star = "*" if row["starred"] else " "
        off = "" if row["default"] else "  (off: --level info)"
        console().print(f"{row['code']}{star} {row['name']:<30} {row['summary']}{off}")
    console().print("\n* one of the 25 that matter most; bnkit explain CODE shows the page")
