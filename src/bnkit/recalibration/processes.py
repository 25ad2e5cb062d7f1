"""One estimate from the data of several processes of `torch.distributed`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import torch
import torch.distributed as dist

from bnkit.core import Moments, RunningStats, SynchronizationError, merge_stacked
from bnkit.recalibration.estimators import Tally


class Together:
    """The processes that share the data; alone where there are none.

    Args:
        group: A group of `torch.distributed`; None = all processes, if it is initialized.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        active = dist.is_available() and dist.is_initialized()
        self.size = max(dist.get_world_size(group), 1) if active else 1
        self.rank = dist.get_rank(group) if active else 0

    def agree(self, what: str, value: float) -> None:
        """Raise `SynchronizationError` unless all processes have the same value."""
        found = self.gather(np.array([value]))[:, 0]
        if len(set(found.tolist())) > 1:
            msg = (
                f"recalibrate: expected the same {what} in every process, got "
                f"{', '.join(f'{v:g}' for v in found)} for ranks 0 to {self.size - 1}. Give all "
                "processes the same model and the same options."
            )
            raise SynchronizationError(msg)

    def guarded(self, work: Callable[[], Any]) -> Any:
        """Do something in every process; if it fails in one, it fails in all.

        Args:
            work: What to do, without talking to the others.

        Returns:
            What it returns.

        Raises:
            SynchronizationError: It failed in another process.
        """
        if self.size == 1:
            return work()
        try:
            done = work()
        except Exception:
            self.gather(np.array([1.0]))
            raise
        failed = np.flatnonzero(self.gather(np.array([0.0]))[:, 0])
        if failed.size:
            msg = (
                f"recalibrate: rank {failed[0]} of {self.size} failed; its own message says why. "
                "Nothing was changed in any process."
            )
            raise SynchronizationError(msg)
        return done

    def merge(self, tally: Tally) -> tuple[Tally, np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """The tally of all processes, the same in each of them.

        Args:
            tally: Of this process.

        Returns:
            The whole, the batches per channel, and the sums of squares of `Replicates.squares`.
        """
        if self.size == 1:
            return tally, tally.replicates.batches, tally.replicates.squares(tally.whole)
        whole = self._whole(tally.whole)
        mine = np.stack([*tally.replicates.squares(whole), tally.replicates.batches])
        of_mean, of_var, batches = self.gather(mine).sum(0)
        scalars = np.array([tally.batches, tally.samples, tally.left_out], float)
        total = self.gather(scalars).sum(0).astype(int).tolist()
        sizes = self.gather(tally.sizes)
        together = replace(
            tally,
            batches=total[0],
            samples=total[1],
            left_out=total[2],
            averages=self._averages(tally),
        )
        together.whole, together.replicates = whole, tally.replicates
        together.calls = self.gather(tally.calls).sum(0)
        together.sizes = np.stack([sizes[:, 0].min(0), sizes[:, 1].max(0)])
        return together, batches, (of_mean, of_var)

    def gather(self, mine: np.ndarray) -> np.ndarray:
        """`(size, *mine.shape)`, in float64."""
        if self.size == 1:
            return mine[None]
        device = torch.device("cuda" if dist.get_backend(self.group) == "nccl" else "cpu")
        flat = torch.tensor(mine, dtype=torch.float64, device=device).flatten()
        found = flat.new_empty(self.size * flat.numel())
        try:
            dist.all_gather_single(found, flat, group=self.group)
        except RuntimeError as error:
            msg = (
                f"recalibrate: rank {self.rank} waited for the other {self.size - 1} in vain: "
                f"{error}. Has another process ended or been stopped? Nothing was changed."
            )
            raise SynchronizationError(msg) from error
        return found.cpu().numpy().reshape(self.size, *mine.shape)

    def _whole(self, mine: Moments) -> Moments:
        rows = np.stack([mine.count, mine.m2, np.real(mine.mean), np.imag(mine.mean)])
        counts, m2, real, imaginary = self.gather(rows).swapaxes(0, 1)
        mean = real + 1j * imaginary if np.iscomplexobj(mine.mean) else real
        merged = merge_stacked(Moments(counts, mean, m2), xp=xp)
        return Moments(counts.sum(0), merged.mean, merged.m2)

    def _averages(self, tally: Tally) -> dict[int, RunningStats]:
        """Averages with equal weight of all batches, which may be averaged again."""
        if tally.estimator == "pooled":
            return {}
        n = tally.sides.total
        rows = np.zeros((4, n))
        for number, average in tally.averages.items():
            part = tally.sides.slices[number]
            rows[0, part] = average.batches
            rows[1:, part] = average.var, np.real(average.mean), np.imag(average.mean)
        batches, *values = self.gather(rows).swapaxes(0, 1)
        total = np.maximum(batches.sum(0), 1)
        var, real, imaginary = ((batches * v).sum(0) / total for v in values)
        mean = real + 1j * imaginary if np.iscomplexobj(tally.whole.mean) else real
        slices = tally.sides.slices
        return {
            number: RunningStats(mean[part], var[part], int(total[part][0]))
            for number, part in enumerate(slices)
        }
