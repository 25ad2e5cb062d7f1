"""The mends that more than one rule proposes."""

from bnkit.doctor.finding import Fix

RECALIBRATE = Fix(
    "recalibrate",
    "unsafe",
    "bnkit fix --recalibrate DATA  (writes a new file, keeps it only when the metric improves)",
)
EVAL = Fix("eval", "safe", "call model.eval() before inference; no file keeps a mode")
NONE = Fix("none", "manual", "there is no automatic mend")


def manual(text: str) -> Fix:
    """A mend that a person has to make."""
    return Fix("manual", "manual", text)
