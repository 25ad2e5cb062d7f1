"""What the benchmark finds: frozen data, plain enough for JSON."""

from dataclasses import asdict, dataclass
from typing import Any

SCHEMA = "bnkit.bench/1"


@dataclass(frozen=True)
class Timing:
    """One provider in one comparison.

    Attributes:
        provider: "torch", "compile", "bnkit", ...
        seconds: Median of the samples.
        low: First quartile.
        high: Third quartile.
        samples: Number of samples.
        repetitions: Calls in one sample.
    """

    provider: str
    seconds: float
    low: float
    high: float
    samples: int
    repetitions: int


@dataclass(frozen=True)
class Missing:
    """A provider that could not be measured, and why."""

    provider: str
    reason: str


@dataclass(frozen=True)
class Measurement:
    """One batch norm, one direction, all providers.

    Attributes:
        network: Where the shape comes from.
        sizes: Shape of the input.
        memory_format: "contiguous" or "channels_last".
        operator: "bn", "bn_relu" or "bn_add_relu".
        direction: "forward", "backward", "forward_backward" or "eval".
        array_bytes: Bytes of the input.
        floor_bytes: Bytes that must be moved (`traffic`).
        timings: The providers.
        missing: Providers that could not run.
        others: Share of the processor that other processes took meanwhile, if the system says.
    """

    network: str
    sizes: tuple[int, ...]
    memory_format: str
    operator: str
    direction: str
    array_bytes: int
    floor_bytes: int
    timings: tuple[Timing, ...]
    missing: tuple[Missing, ...] = ()
    others: float | None = None

    def seconds(self, provider: str) -> float | None:
        """Median time of a provider, or None where it did not run."""
        return next((t.seconds for t in self.timings if t.provider == provider), None)

    def ratio(self, provider: str) -> float | None:
        """How many times longer a provider takes than bnkit."""
        theirs, ours = self.seconds(provider), self.seconds("bnkit")
        return None if theirs is None or ours is None else theirs / ours

    def ceiling(self, provider: str) -> float | None:
        """The ratio against a provider of a kernel that moved the floor as fast as a copy."""
        theirs, copy = self.seconds(provider), self.seconds("copy")
        if theirs is None or copy is None:
            return None
        return theirs / (copy * self.floor_bytes / (2 * self.array_bytes))

    def share(self, copy: str) -> float | None:
        """Share of the bandwidth of a copy that bnkit reaches, by the floor of the bytes."""
        theirs, ours = self.seconds(copy), self.seconds("bnkit")
        if theirs is None or ours is None:
            return None
        return (self.floor_bytes / ours) / (2 * self.array_bytes / theirs)


@dataclass(frozen=True)
class Step:
    """Whole training steps of one network; `others` as in `Measurement`."""

    network: str
    memory_format: str
    batch: tuple[int, ...]
    timings: tuple[Timing, ...]
    others: float | None = None

    def ratio(self, provider: str) -> float:
        """How many times longer torch.nn takes than a provider."""
        seconds = {t.provider: t.seconds for t in self.timings}
        return seconds["torch"] / seconds[provider]


@dataclass(frozen=True)
class Check:
    """One quantity compared with float64: largest errors, in units of the largest true value.

    Attributes:
        sizes: Shape of the input.
        memory_format: Of bnkit's input.
        operator: What was computed.
        mean: Mean of the input; its standard deviation is 1.
        quantity: "y", "grad_x", "running_var", ...
        error: Of bnkit.
        torch: The better of torch's memory formats.
        bound: What float32 explains (`gate`).
    """

    sizes: tuple[int, ...]
    memory_format: str
    operator: str
    mean: float
    quantity: str
    error: float
    torch: float
    bound: float

    @property
    def within_twice(self) -> bool:
        """Whether the error is at most twice torch's."""
        return self.error <= 2 * self.torch

    @property
    def passed(self) -> bool:
        """At most twice torch's error, or below what float32 explains; NaN never passes."""
        return self.within_twice or self.error <= self.bound


@dataclass(frozen=True)
class Outcome:
    """One row of the table of targets.

    Attributes:
        what: What was measured.
        against: What it was compared with.
        wanted: The target in words.
        measured: The number, or None where it was not measured.
        unit: "x" for a ratio, "%" for a share.
        passed: Whether the target is reached; None where it was not measured.
        note: Range, or why it was not measured.
    """

    what: str
    against: str
    wanted: str
    measured: float | None
    unit: str
    passed: bool | None
    note: str = ""


@dataclass(frozen=True)
class Machine:
    """Where it was measured.

    Attributes:
        cpu: Name of the processor.
        cores: Logical ones.
        threads: Threads of torch.
        memory_gib: Main memory.
        system: Operating system, architecture, vector instructions that torch uses.
        load_before: Mean number of running processes in the minute before.
        load_after: The same at the end, this one included.
        versions: Of what matters.
        git: Commit of bnkit, with "+" if files were changed.
    """

    cpu: str
    cores: int
    threads: int
    memory_gib: float | None
    system: str
    load_before: float | None
    load_after: float | None
    versions: dict[str, str]
    git: str | None


@dataclass(frozen=True)
class Report:
    """A whole run."""

    date: str
    level: str
    seconds: float
    machine: Machine
    outcomes: tuple[Outcome, ...]
    measurements: tuple[Measurement, ...]
    steps: tuple[Step, ...]
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document that `--json` writes."""
        return {"schema": SCHEMA, **asdict(self)}
