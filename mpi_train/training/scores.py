"""How a model did on the test set, example by example: its means, who is taken for whom, the worst."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpi_train.data.examples import Examples
from mpi_train.runtime.world import World

NUM_WORST = 24


@dataclass(frozen=True, eq=False)
class Scores:
    """Of one rank's part of the test set.

    Attributes:
        examples: What was looked at: n examples, none on a rank whose examples another one counts.
        losses: float32 (n,), cross-entropy of each.
        predicted: int32 (n,), the class with the largest output.
    """

    examples: Examples
    losses: np.ndarray
    predicted: np.ndarray

    @property
    def num_correct(self) -> int:
        return int(np.count_nonzero(self.predicted == self.examples.labels))

    def means(self, world: World) -> tuple[float, float]:
        """Loss and accuracy over the parts of all ranks together."""
        mine = np.array([self.losses.sum(dtype=np.float64), self.num_correct, len(self.examples)], np.float64)
        loss, correct, count = world.sum(mine)
        return float(loss / count), float(correct / count)

    def confusion(self, world: World, num_classes: int) -> list[list[int]]:
        """Examples of all ranks together, by label (row) and by what they were taken for (column)."""
        cells = num_classes * self.examples.labels.astype(np.int64) + self.predicted
        counts = world.sum(np.bincount(cells, minlength=num_classes**2))
        return [[int(count) for count in row] for row in counts.reshape(num_classes, num_classes)]

    def worst(self, world: World, number: int = NUM_WORST) -> list[dict[str, Any]]:
        """The examples, of all ranks together, that were taken for something else with the highest loss.

        Returns:
            The worst first, as JSON can hold it: ``label``, ``predicted``, ``loss``, and ``pixels``, the
            image's uint8 in base64.
        """
        wrong = np.flatnonzero(self.predicted != self.examples.labels)
        mine = wrong[np.argsort(-self.losses[wrong], kind="stable")[:number]]
        # Losses first, as the images of many ranks would be a lot to send.
        losses = np.sort(np.concatenate(world.gather_all(self.losses[mine])))[::-1]
        mine = mine[self.losses[mine] >= losses[:number].min(initial=np.inf)]
        found: list[dict[str, Any]] = [
            {
                "label": int(self.examples.labels[i]),
                "predicted": int(self.predicted[i]),
                "loss": float(self.losses[i]),
                "pixels": base64.b64encode(self.examples.images[i].tobytes()).decode(),
            }
            for i in mine
        ]
        everyone = [mistake for rank in world.gather_all(found) for mistake in rank]
        return sorted(everyone, key=lambda mistake: -mistake["loss"])[:number]


def nothing_of(examples: Examples) -> Scores:
    """The scores of a rank whose ``examples`` another one counts."""
    none = Examples(examples.images[:0], examples.labels[:0])
    return Scores(none, np.zeros(0, np.float32), np.zeros(0, np.int32))
