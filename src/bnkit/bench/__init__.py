"""The benchmark: bnkit beside torch, torch.compile and a plain copy, once its numbers are right."""

from bnkit.bench.family import FamilyReport as FamilyReport
from bnkit.bench.family import run_family as run_family
from bnkit.bench.gate import GateError as GateError
from bnkit.bench.results import Report as Report
from bnkit.bench.run import BenchConfig as BenchConfig
from bnkit.bench.run import run_bench as run_bench
