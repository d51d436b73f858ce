"""The unit in which a head learns numbers: how far they are from their mean, in standard deviations. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True, slots=True)
class Unit:
    """Stars from 1 to 5 and prices of houses are the same to learn once they are told in it: a step of Adam moves a weight
    by about the learning rate, whatever the numbers are.
    """

    mean: float = 0.0
    spread: float = 1.0
    """The standard deviation, above 0."""

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Unit:
        """Of at least one; those that are all the same spread by 1."""
        # Their mean may be a bit off.
        if min(numbers) == max(numbers):
            return cls(numbers[0])
        mean = fmean(numbers)
        # Numbers near the largest there is have squares beyond it.
        furthest = max(abs(number - mean) for number in numbers)
        return cls(mean, furthest * math.sqrt(fmean(((number - mean) / furthest) ** 2 for number in numbers)))

    def told(self, number: float) -> float:
        """A number in this unit."""
        return (number - self.mean) / self.spread
