"""The frozen results of the lab; `to_dict()` of the outermost one is `results.json`.

Every number is finite or None. A share lies in [0, 1]. Text is in English and Chinese.
"""

from dataclasses import dataclass
from typing import Any, Literal

from bnkit.lab.leaving_record import Leaving
from bnkit.lab.plain import Record, to_plain
from bnkit.lab.text import Text as Text

Verdict = Literal["reproduced", "direction only", "not reproduced", "contradicted", "artefact"]
State = Literal["finite", "inf", "nan"]

DEMO_SCHEMA = "bnkit.demo/1"
MOFAN_SCHEMA = "bnkit.lab.mofan/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord(Record):
    """One layer at one step: the histogram of its values and what the histogram hides.

    Attributes:
        step: Training step before which it was recorded.
        counts: Finite entries in each bin of the window.
        entries: Samples times units.
        nan: Entries that are NaN.
        posinf: Entries that are +infinity.
        neginf: Entries that are -infinity.
        negative: Finite entries below 0, inside the window or not.
        outside: Share of all entries that are finite and outside the window.
        nonfinite: Share of all entries that are NaN or infinite.
        zero: Share of the finite entries that are exactly 0; None without finite entries.
        saturated: Share of the finite entries with abs(a) > 0.99; tanh only.
        dead: Share of the units that are exactly 0 for every sample; relu hidden layers only.
        zero_if_nan_is_zero: Share of all entries that are 0 when NaN is read as 0, which is what
            TensorFlow's fused relu makes of it; relu only.
        mean: Mean of the finite entries.
        sd: Standard deviation (divisor n) of the finite entries.
    """

    step: int
    counts: tuple[int, ...]
    entries: int
    nan: int
    posinf: int
    neginf: int
    negative: int
    outside: float
    nonfinite: float
    zero: float | None
    saturated: float | None
    dead: float | None
    zero_if_nan_is_zero: float | None
    mean: float | None
    sd: float | None


@dataclass(frozen=True, slots=True)
class LayerHistory(Record):
    """One layer over the recorded steps; layer 0 is the input of the network."""

    layer: int
    edges: tuple[float, ...]
    records: tuple[LayerRecord, ...]


@dataclass(frozen=True, slots=True)
class CostCurve(Record):
    """The cost after some steps; None where it is not finite, and `state` says how."""

    steps: tuple[int, ...]
    values: tuple[float | None, ...]
    state: tuple[State, ...]


@dataclass(frozen=True, slots=True)
class MofanRun(Record):
    """One of the four networks of the tutorial."""

    activation: Literal["relu", "tanh"]
    batch_norm: bool
    cost: CostCurve
    layers: tuple[LayerHistory, ...]


@dataclass(frozen=True, slots=True)
class Reference(Record):
    """Costs to compare with, measured on the data of the tutorial."""

    best_constant: float
    predict_zero: float
    noise_variance: float


@dataclass(frozen=True, slots=True)
class Claim(Record):
    """A sentence of the tutorial, what was measured, and the verdict from the numbers."""

    id: str
    quote: str
    claim: Text
    measured: Text
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class AblationCell(Record):
    """Final cost at one learning rate; `median` is None when most runs are not finite."""

    lr: float
    median: float | None
    nonfinite: int
    runs: int


@dataclass(frozen=True, slots=True)
class AblationRow(Record):
    """One network over the learning rates."""

    activation: str
    init: str
    batch_norm: bool
    cells: tuple[AblationCell, ...]


@dataclass(frozen=True, slots=True)
class Ablation(Record):
    """Is it batch norm, or only the initialization?"""

    seeds: int
    lrs: tuple[float, ...]
    rows: tuple[AblationRow, ...]


@dataclass(frozen=True, slots=True)
class Mofan(Record):
    """The experiment of the tutorial."""

    config: dict[str, Any]
    record_steps: tuple[int, ...]
    reference: Reference
    runs: tuple[MofanRun, ...]
    claims: tuple[Claim, ...]
    ablation: Ablation | None


@dataclass(frozen=True, slots=True)
class TwinRun(Record):
    """One training of one twin; a loss that is not finite is None."""

    seed: int
    lr: float
    steps: tuple[int, ...]
    train_loss: tuple[float | None, ...]
    val_accuracy: tuple[float, ...]
    test_accuracy: float


@dataclass(frozen=True, slots=True)
class SweepPoint(Record):
    """Validation accuracy that one learning rate reached in the search for the best one."""

    lr: float
    val_accuracy: float


@dataclass(frozen=True, slots=True)
class Arm(Record):
    """A twin: its runs over the seeds, and how its learning rate was chosen."""

    id: Literal["bn", "plain"]
    name: Text
    lr: float
    sweep: tuple[SweepPoint, ...]
    runs: tuple[TwinRun, ...]


@dataclass(frozen=True, slots=True)
class ModeRow(Record):
    """Test accuracy of the same trained networks, judged in one way; sd has divisor n - 1."""

    id: str
    name: Text
    accuracy: float
    sd: float
    runs: int


@dataclass(frozen=True, slots=True)
class Mode(Record):
    """The ways of judging, side by side."""

    rows: tuple[ModeRow, ...]


@dataclass(frozen=True, slots=True)
class LayerGap(Record):
    """Running against population statistics of one layer: the worst of its channels and seeds.

    Attributes:
        name: Qualified name of the layer.
        distance_mean_z: Largest `|running_mean - mean| / sd`.
        ratio_var: The `running_var / var` farthest from 1: with the largest `|log ratio|`.
    """

    name: str
    distance_mean_z: float
    ratio_var: float


@dataclass(frozen=True, slots=True)
class Twins(Record):
    """The same convolutional network with and without batch norm, on real digits."""

    config: dict[str, Any]
    arms: tuple[Arm, ...]
    mode: Mode
    layers: tuple[LayerGap, ...]


@dataclass(frozen=True, slots=True)
class LayerVerdict(Record):
    """Whether the running statistics of one layer describe the data, as the doctor's probe says."""

    name: str
    verdict: Literal["ok", "warning", "error", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair(Record):
    """A fault that was planted in a trained network: what the doctor said, what mending brought.

    Attributes:
        id: Of the fault.
        name: The fault.
        expected: Code of the rule that should name it.
        code: Code of the doctor's first finding; None where it found nothing.
        rule: Name of that rule.
        severity: Of the finding.
        certainty: Of the finding.
        said: The finding in English; in Chinese what its rule looks for.
        layers: The layers in order.
        eval_accuracy: Share of the training images right in eval mode, as the doctor measured it.
        batch_accuracy: The same with the statistics of each batch.
        before: Test accuracy of the broken network.
        steps: What was mended, as code and verb.
        refused: Why nothing was mended; None where something was.
        mend: What was done.
        after: Test accuracy then.
        errors_after: Errors that the doctor found then.
    """

    id: str
    name: Text
    expected: str
    code: str | None
    rule: str | None
    severity: str | None
    certainty: str | None
    said: Text
    layers: tuple[LayerVerdict, ...]
    eval_accuracy: float | None
    batch_accuracy: float | None
    before: float
    steps: tuple[str, ...]
    refused: str | None
    mend: Text
    after: float
    errors_after: int


@dataclass(frozen=True, slots=True)
class Repairs(Record):
    """A trained network as it is, and with one fault after the other."""

    config: dict[str, Any]
    accuracy: float
    findings: int
    rows: tuple[Repair, ...]


@dataclass(frozen=True, slots=True)
class Finding(Record):
    """What one experiment showed, in one sentence."""

    id: Literal["mofan", "twins", "mode", "doctor", "leaving"]
    text: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything one command measured; `bnkit lab mofan` runs the first only; the rest is None."""

    schema: str
    bnkit: str
    created: str
    seconds: float
    environment: dict[str, Any]
    findings: tuple[Finding, ...]
    mofan: Mofan
    twins: Twins | None = None
    repairs: Repairs | None = None
    leaving: Leaving | None = None

    def to_dict(self) -> dict[str, Any]:
        """The document of `results.json`, without the keys of what was not run."""
        document = to_plain(self)
        return {k: v for k, v in document.items() if v is not None}
