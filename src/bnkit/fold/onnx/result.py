"""What folding an ONNX model gave."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from bnkit.fold.onnx.folding import OnnxRecord
from bnkit.fold.onnx.proof import OnnxProof
from bnkit.fold.onnx.saving import save


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class OnnxFolding:
    """A folded model and the proof that it computes the same.

    Attributes:
        model: The folded model, with all data inside; the original's numbers if nothing could be
            folded.
        records: What became of each BatchNormalization.
        proof: The comparison with the original.
        external: Whether the original kept data in other files; `save` then does so too.
        name: Of the original.
    """

    model: ModelProto
    records: tuple[OnnxRecord, ...]
    proof: OnnxProof
    external: bool
    name: str

    @property
    def folded(self) -> tuple[OnnxRecord, ...]:
        """The batch norms that are gone."""
        return self._with("folded")

    @property
    def kept(self) -> tuple[OnnxRecord, ...]:
        """Those that nothing beside them can take."""
        return self._with("kept")

    @property
    def refused(self) -> tuple[OnnxRecord, ...]:
        """Those where folding would be wrong."""
        return self._with("refused")

    def save(self, path: "str | os.PathLike[str]", *, external: bool | None = None) -> Path:
        """Write the folded model, to a temporary name first.

        Args:
            path: The new file.
            external: Whether tensors go to a second file beside it; None does as the original.

        Returns:
            The path.
        """
        return save(
            self.model, Path(path), external=self.external if external is None else external
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain values that strict JSON can hold."""
        counts = Counter(r.action for r in self.records)
        return {
            "name": self.name,
            "counts": {a: counts[a] for a in ("folded", "kept", "refused")},
            "records": [r.to_dict() for r in self.records],
            "proof": self.proof.to_dict(),
        }

    def __str__(self) -> str:
        head = f"{len(self.folded)} of {len(self.records)} batch norms folded; {self.proof}."
        return "\n".join([head, *(f"  {r}" for r in self.records)])

    def _with(self, action: str) -> tuple[OnnxRecord, ...]:
        return tuple(r for r in self.records if r.action == action)
