"""The fold of a cross-validation that a run validates on."""

from typing import Annotated, NamedTuple

from pydantic import Field

from leyden.errors import UserError

Folds = Annotated[int, Field(ge=2)]


class Fold(NamedTuple):
    """One fold of a cross-validation."""

    number: int  # counted from 0
    num_folds: int

    @classmethod
    def from_config(cls, folds: int | None, fold: int | None) -> "Fold | None":
        """Return the fold that `data.folds` and `data.fold` define; None if both are None.

        Raises:
            UserError: if only one of them is set, or `fold` is not below `folds`.
        """
        if folds is None and fold is None:
            return None
        if folds is None:
            raise UserError(f"data.fold={fold} needs the number of folds: set data.folds too")
        if fold is None:
            raise UserError(f"data.folds={folds} needs one of them: set data.fold=0 to {folds - 1} too")
        if fold >= folds:
            raise UserError(f"data.fold={fold} is not one of data.folds={folds}: they count from 0 to {folds - 1}")
        return cls(fold, folds)
