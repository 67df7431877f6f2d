"""What a model got for each query without and with a thought, and what its gate said."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_NUMBERS = ("never", "always", "tokens", "gate_prob", "seconds_never", "seconds_always")


@dataclass(frozen=True)
class Answers:
    """
    One entry per query, of one or several tasks.

    Args:
        task: `(N,)` names.
        cluster: `(N,)` names of what the queries are about.
        never: `(N,)` scores of the direct vectors, say 1 where the right candidate came first.
        always: `(N,)` scores of the reasoned vectors.
        tokens: `(N,)` of each query's thought.
        gate_prob: `(N,)` probabilities that the gate thinks. `None` for models without a gate.
        seconds_never, seconds_always: `(N,)` that a query of its task takes in each mode. `None` if not measured.
        alignment_never, alignment_always: `(N,)` how close each vector comes to the right candidate, 0 to 1; NaN where
            it was not measured. `None` if it never was.

    Raises:
        ValueError: if there are no queries, lengths differ, or a number that has to be there is not finite.
    """

    task: npt.NDArray[Any]
    cluster: npt.NDArray[Any]
    never: npt.NDArray[Any]
    always: npt.NDArray[Any]
    tokens: npt.NDArray[Any]
    gate_prob: npt.NDArray[Any] | None = None
    seconds_never: npt.NDArray[Any] | None = None
    seconds_always: npt.NDArray[Any] | None = None
    alignment_never: npt.NDArray[Any] | None = None
    alignment_always: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        if not len(self.task):
            raise ValueError("there are no queries; give at least one")
        for name, values in self._columns().items():
            if values.shape != (len(self.task),):
                raise ValueError(f"{name} has the shape {values.shape}; expected one per query, ({len(self.task)},)")
            if name in _NUMBERS and not np.isfinite(values.astype(np.float64)).all():
                row = int(np.argmin(np.isfinite(values.astype(np.float64))))
                raise ValueError(f"{name} of query {row} is {values[row]}; it has to be finite")

    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def where(self, mask: npt.NDArray[np.bool_]) -> Answers:
        """The queries for which `mask` `(N,)` is true."""
        return Answers(**{name: values[mask] for name, values in self._columns().items()})

    def thinks(self, threshold: float) -> npt.NDArray[np.bool_]:
        """
        `(N,)`: for which queries the gate thinks at this threshold.

        Raises:
            ValueError: if the model has no gate.
        """
        return self.gate() >= threshold

    def threshold(self, share: float) -> float:
        """
        The highest threshold at which at least this share of all queries thinks, the nearest whole number of them;
        infinite for none. Queries of equal probability think together.

        Raises:
            ValueError: if the model has no gate, or the share is not one.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share={share}; allowed: 0 to 1")
        number = round(share * len(self.task))
        return float(np.sort(self.gate())[-number]) if number else np.inf

    def gate(self) -> npt.NDArray[Any]:
        """
        `(N,)` probabilities that the gate thinks.

        Raises:
            ValueError: if the model has no gate.
        """
        if self.gate_prob is None:
            raise ValueError("these answers have no gate_prob: the model has no gate, or none was recorded")
        return self.gate_prob

    def gap(self) -> Floats:
        """
        `(N,)` utility gap: alignment of the reasoned vector minus that of the direct one. NaN where it is not known.
        """
        if self.alignment_never is None or self.alignment_always is None:
            return np.full(len(self.task), np.nan)
        return self.alignment_always.astype(np.float64) - self.alignment_never.astype(np.float64)
