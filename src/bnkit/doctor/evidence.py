"""Everything that was read or measured of a subject: the only thing that rules see."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bnkit.doctor.facts import ModelFacts, OptimizerFacts
from bnkit.doctor.finding import Purpose
from bnkit.doctor.flow import Flow
from bnkit.doctor.record import BatchNormRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bnkit.doctor.behaviour import Behaviour
    from bnkit.doctor.journal import Journal
    from bnkit.doctor.loader import LoaderFacts
    from bnkit.doctor.measured import Probe
    from bnkit.doctor.mixture import Mixture
    from bnkit.doctor.program import Program

Relation = Literal["averaged", "rank", "converted"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Another subject beside this one.

    Attributes:
        relation: What the other one is: the model that this one averages, another rank of the
            same training, or the source of a conversion.
        records: Its batch norms by name.
        same_weights: Whether all other parameters agree.
    """

    relation: Relation
    records: Mapping[str, BatchNormRecord]
    same_weights: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the doctor knows of a subject.

    Attributes:
        purpose: What the subject is meant for.
        records: Its batch norms.
        missing: Why a field is None, by its name.
        model: Facts of the whole module.
        flow: Which operation feeds which.
        probe: What flows into each batch norm.
        behaviour: What eval mode does.
        loader: How the data are cut.
        serving: The probe on the data of inference, when other than those of training.
        domains: The probe on the data of each domain.
        optimizer: Which parameters it updates, and how.
        pair: Another subject to compare with.
        parity: Relative difference between the results of each batch norm and those of the source
            of a conversion, in order.
        members: The networks whose average this one is.
        journal: What happened in a watched training loop.
        program: Operators of an exported program.
    """

    purpose: Purpose
    records: tuple[BatchNormRecord, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    model: ModelFacts | None = None
    flow: Flow | None = None
    probe: "Probe | None" = None
    behaviour: "Behaviour | None" = None
    loader: "LoaderFacts | None" = None
    serving: "Probe | None" = None
    domains: "Mapping[str, Probe] | None" = None
    optimizer: OptimizerFacts | None = None
    pair: Pair | None = None
    parity: Mapping[str, float] | None = None
    members: "Mixture | None" = None
    journal: "Journal | None" = None
    program: "Program | None" = None

    @property
    def by_name(self) -> dict[str, BatchNormRecord]:
        """Records by qualified name."""
        return {r.name: r for r in self.records}

    @property
    def with_statistics(self) -> list[BatchNormRecord]:
        """Records that hold running statistics."""
        return [r for r in self.records if r.has_statistics]
