"""Settings of the synthetic captures."""

from __future__ import annotations

from dataclasses import dataclass

from infra.errors import UserError
from preprocessing.synthetic.objects import CATEGORIES


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """What to draw.

    Raises:
        UserError: unknown category, or a number out of range.
    """

    categories: tuple[str, ...] = ("teddybear", "hydrant")
    """Kinds of objects: teddybear, hydrant, apple, donut."""
    objects_per_category: int = 20
    """Sequences per category, each of another object."""
    frames_per_sequence: int = 24
    """Frames on one turn around an object."""
    image_size: int = 128
    """Short side of an image, pixels. In two of five sequences the other side is a quarter longer."""
    seed: int = 0
    """Seed of everything that is drawn."""
    defects: bool = False
    """Give every second sequence a defect that real captures have: missing or damaged files, null and NaN fields."""

    def __post_init__(self) -> None:
        for category in self.categories:
            if category not in CATEGORIES:
                raise UserError(f"synthetic category {category!r}: unknown, choose from {', '.join(CATEGORIES)}")
        if not self.categories or len(set(self.categories)) != len(self.categories):
            raise UserError(f"synthetic categories {self.categories}: name at least one, each once")
        for name, least in (("objects_per_category", 1), ("frames_per_sequence", 2), ("image_size", 16), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"synthetic {name} {getattr(self, name)}: must be at least {least}")
