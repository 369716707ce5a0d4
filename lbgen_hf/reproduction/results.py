"""The cells of a run as one table of metrics, and the expected orders tested on it."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lbgen_hf.reproduction.arms import Arm
from lbgen_hf.reproduction.cells import Cell
from lbgen_hf.reproduction.orders import (
    Difference,
    Order,
    bootstrap_difference,
    expected_orders,
    paired_difference,
)


@dataclasses.dataclass(frozen=True)
class Results:
    """All cells of a run.

    Attributes:
        arms: by name, in the order of the tables.
        images: arm to metric to its value and bootstrap replicates.
        backbones: arm to metric to a number for each (backbone, seed), in one order for all arms that have any; None
            where it is undefined, as a ratio to no right answers.
        pairs: these (backbone, seed).
        shapes: arm to prompt to the shapes that the judge sees, of polysemous names and of their specific names.
    """

    arms: dict[str, Arm]
    images: dict[str, dict[str, tuple[float, list[float]]]]
    backbones: dict[str, dict[str, list[float | None]]]
    pairs: list[tuple[str, int]]
    shapes: dict[str, dict[str, dict[str, int]]]

    @classmethod
    def of_cells(cls, arms: dict[str, Arm], cells: Iterable[tuple[Cell, Mapping[str, Any]]]) -> "Results":
        """From all cells of these arms, in any order."""
        images, scores, shapes = {}, {}, {}
        for cell, content in cells:
            if cell.backbone is None:
                images[cell.arm] = {name: (row[0], row[1:]) for name, row in content["metrics"].items()}
                if "shapes" in content:
                    shapes[cell.arm] = content["shapes"]
            else:
                scores[cell.arm, (cell.backbone, cell.seed)] = content["scores"]
        pairs = sorted({pair for _, pair in scores})
        metrics = next(iter(scores.values()))
        backbones = {
            name: {metric: [scores[name, pair][metric] for pair in pairs] for metric in metrics}
            for name, arm in arms.items()
            if not arm.images_only
        }
        return cls(arms, images, backbones, pairs, shapes)

    def estimate(self, arm: str, metric: str) -> Difference:
        """The metric itself, as its difference from zero: over (backbone, seed), or over resamples of the images."""
        if metric in self.images[arm]:
            value, replicates = self.images[arm][metric]
            return bootstrap_difference((value, replicates), (0.0, np.zeros(len(replicates)).tolist()))
        values = self.backbones[arm][metric]
        return paired_difference(values, [0.0] * len(values))

    def difference(self, left: str, right: str, metric: str) -> Difference:
        """Left minus right, paired by backbone and seed, or by noise."""
        if metric in self.images[left]:
            return bootstrap_difference(self.images[left][metric], self.images[right][metric])
        return paired_difference(self.backbones[left][metric], self.backbones[right][metric])

    def as_json(self) -> dict[str, Any]:
        """Arms, metrics with their intervals, and the expected orders whose arms and metrics are here."""
        metrics = {arm: [*self.images[arm], *self.backbones.get(arm, ())] for arm in self.arms}
        orders = [
            self._test(order)
            for order in expected_orders()
            if order.metric in metrics.get(order.left, ()) and order.metric in metrics.get(order.right, ())
        ]
        return {
            "arms": {name: arm.title for name, arm in self.arms.items()},
            "pairs": self.pairs,
            "orders": orders,
            "metrics": {
                arm: {name: [(found := self.estimate(arm, name)).value, *found.interval] for name in names}
                for arm, names in metrics.items()
            },
            "backbones": self.backbones,
            "shapes": self.shapes,
        }

    def _test(self, order: Order) -> dict[str, Any]:
        difference = self.difference(order.left, order.right, order.metric)
        return vars(order) | {
            "verdict": difference.verdict(order.expect),
            "difference": difference.value,
            "interval": difference.interval,
            "p": difference.p,
            "smallest_detectable": difference.smallest_detectable,
        }
