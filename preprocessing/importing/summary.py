"""What an import tells the person who must judge whether it went well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from infra.log import format_count
from preprocessing.importing.agreement import CHECKED_SIDE, DOUBTFUL_PIXELS, Agreement
from preprocessing.importing.checking import LeftOut, by_reason

# Median reprojection error that reconstructions of sharp photos have.
GOOD_PIXELS = 0.5


@dataclass(frozen=True, eq=False)
class ImportSummary:
    """One import. Sizes are (height, width)."""

    key: str  # category/name
    num_photos: int  # that the source names
    left_out: tuple[LeftOut, ...]
    lenses: Counter[str]  # names of the source's camera models, photos of each
    sizes: Counter[tuple[int, int]]  # of the written pictures
    num_masks: int
    changes: Counter[str]  # what was done, to how many photos
    reprojection_errors: np.ndarray  # [M] pixels in the written pictures; none if the source has no observations
    agreement: Agreement | None
    seeing: int  # photos with at least half of the object's points in them
    points: str  # where the object's points come from
    notes: tuple[str, ...]

    @property
    def num_written(self) -> int:
        """Photos that are frames now."""
        return self.num_photos - len(self.left_out)

    def lines(self) -> list[str]:
        """For a person, the most important first."""
        sizes = ", ".join(f"{size[1]} × {size[0]} ({count})" for size, count in self.sizes.most_common())
        written = self.num_written
        return [
            f"{self.key}: {written} of {format_count(self.num_photos, 'photo')} taken, {self.num_masks} with a mask",
            *(f"  left out: {line}" for line in reasons(self.left_out)),
            f"  pictures: {sizes}",
            f"  lens: {', '.join(f'{name} ({count})' for name, count in self.lenses.most_common())}",
            *(f"  {format_count(count, 'photo')} {change}" for change, count in self.changes.most_common()),
            f"  object: {self.points}",
            f"  object seen: in {self.seeing} of {format_count(written, 'photo')} ({self.seeing / written:.0%})",
            f"  cameras and points: {self._reprojection()}",
            f"  cameras and pictures: {self._agreement()}",
            *(f"  note: {note}" for note in self.notes),
        ]

    def _reprojection(self) -> str:
        errors = self.reprojection_errors
        if not len(errors):
            return "the source does not say where its points were seen, so that nothing can be compared"
        median = float(np.median(errors))
        verdict = "good" if median <= GOOD_PIXELS else f"more than {GOOD_PIXELS:g} px: the cameras are not precise"
        seen = f"{len(errors):,} observations, now in the written pictures"
        return f"median reprojection error {median:.2f} px ({seen}): {verdict}"

    def _agreement(self) -> str:
        if self.agreement is None:
            return "neighbouring pictures have too little in common to be compared; look at a contact sheet"
        pixels = self.agreement.pixels
        verdict = "good" if pixels <= DOUBTFUL_PIXELS else "DOUBTFUL: look at a contact sheet before you go on"
        pairs = f"{self.agreement.pairs} pairs of pictures, at most {CHECKED_SIDE} px wide"
        return f"features lie {pixels:.2f} px off their epipolar lines (median, {pairs}): {verdict}"


def reasons(left_out: Iterable[LeftOut]) -> list[str]:
    """A line for each reason, the commonest first: how many photos, why, and all their names."""
    return [
        f"{format_count(len(photos), 'photo')}, {reason}: {', '.join(photos)}" + (f"; {remedy}" if remedy else "")
        for (reason, remedy), photos in by_reason(left_out)
    ]
