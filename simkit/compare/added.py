"""What a stream remembers of who added its rows, for its plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..backends.base import Step


@dataclass(frozen=True)
class Added:
    """The backends that added rows to a stream, and the batches that were copied to be added."""

    reasons: Mapping[str, str] = field(default_factory=dict)  # backend -> why it was chosen first
    copies: Mapping[str, int] = field(default_factory=dict)  # where to -> batches of which some layer was copied there

    def by(self, backend: str, reason: str) -> Added:
        """With a batch of this backend's."""
        return Added({**self.reasons, backend: self.reasons.get(backend, reason)}, self.copies)

    def copied_to(self, place: str) -> Added:
        """With a batch that was copied."""
        return Added(self.reasons, {**self.copies, place: self.copies.get(place, 0) + 1})

    def joined(self, other: Added) -> Added:
        """With what another stream remembers, whose rows followed."""
        places = [*self.copies, *other.copies]
        copies = {place: self.copies.get(place, 0) + other.copies.get(place, 0) for place in places}
        return Added({**other.reasons, **self.reasons}, copies)

    def steps(self, ops: Iterable[str], *, route: str = "", workspace: int = 0) -> list[Step]:
        """A step of every backend for each op."""
        return [Step(op, backend, why, route, 0, workspace) for op in ops for backend, why in self.reasons.items()]

    @property
    def notes(self) -> list[str]:
        """A sentence for each place that batches were copied to."""
        return [f"batches copied to {place} and added there: {count}" for place, count in self.copies.items()]
