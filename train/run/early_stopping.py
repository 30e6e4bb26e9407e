"""Ends a run early once it is unlikely that more training gains anything worth having."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from runtime.errors import ModelError
from runtime.evaluation.bootstrap import compare
from runtime.evaluation.matching import ClassMatches, Matches
from train.distributed import World

WORTH_HAVING = 0.5
"""Points of AP; an evaluation that may have gained as much does not count towards the end."""
CONFIDENCE = 0.95
"""Of the upper bound of a gain."""
_FIELDS = ("image_index", "scores", "matched", "ignored", "objects")


class EarlyStopping:
    """Counts evaluations in a row that gained nothing worth having over the best before them.

    An evaluation counts if the upper bound of its gain, by a paired bootstrap over the validation images, is below
    `WORTH_HAVING`. Where few images leave the bound wide, nothing counts, and the run goes on.

    Attributes:
        patience: evaluations in a row that end the run; 0: none do.
        stale: counted so far.
    """

    def __init__(self, patience: int) -> None:
        self.patience, self.stale = patience, 0
        self._best: Matches | None = None
        self._next: tuple[int, Matches | None] = 0, None

    @property
    def ends(self) -> bool:
        """True if the run is to end."""
        return 0 < self.patience <= self.stale

    def judge(self, matches: Matches | None, is_best: bool) -> None:
        """Judges an evaluation; it counts from `commit` on, so that one that is made again counts once.

        Args:
            matches: of this evaluation; None where none could be made, which does not count.
            is_best: its AP is the best so far.
        """
        stale, best = self.stale, self._best
        if matches and best and matches.image_ids != best.image_ids:
            best = None  # an image cannot be read any more: compare with this evaluation from now on
        if self.patience and matches and best:
            gain = compare(best, matches).bounds(CONFIDENCE)
            stale = stale + 1 if gain.upper < WORTH_HAVING else 0
        self._next = stale, matches if is_best or best is None else best

    def agree(self, world: World) -> None:
        """Has all ranks count as rank 0 does, which alone has the matches."""
        stale, best = self._next
        self._next = world.from_main(lambda: stale), best

    def commit(self) -> None:
        """Takes on the last judgment."""
        self.stale, self._best = self._next

    def state_dict(self) -> dict[str, Tensor]:
        """The state that resuming needs, as tensors: the count, and the matches of the best evaluation."""
        if not self.patience:
            return {}
        state = {"stale": torch.tensor(self.stale)}
        if self._best:
            state["image_ids"] = torch.tensor(self._best.image_ids)
            for number, item in enumerate(self._best.by_area["all"]):
                state.update({f"{number}.{name}": torch.from_numpy(np.array(getattr(item, name))) for name in _FIELDS})
        return state

    def load_state_dict(self, state: Mapping[str, Tensor], class_names: tuple[str, ...]) -> None:
        """Takes over what `state_dict` gave; nothing of a run without it.

        Raises:
            ModelError: incomplete.
        """
        if not self.patience or not state:
            return
        try:
            self.stale = int(state["stale"])
            if "image_ids" in state:
                items = [[state[f"{number}.{name}"].numpy() for name in _FIELDS] for number in range(len(class_names))]
                by_area = {"all": tuple(ClassMatches(*item) for item in items)}
                self._best = Matches(tuple(state["image_ids"].tolist()), class_names, by_area)
        except (LookupError, TypeError, ValueError) as error:
            raise ModelError(f"the checkpoint's state of early stopping lacks or misstates {error}") from error
        self._next = self.stale, self._best
