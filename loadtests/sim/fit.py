"""The timing that explains measured steps best: least squares of what a step took, by its parts."""

from collections.abc import Iterable, Sequence

import numpy as np

from replica.core.timing import Timing


def fit(steps: Iterable[tuple[Sequence[float], float]]) -> Timing:
    """The timing with the least squares of relative errors.

    Args:
        steps: What was in each (`work_of`), and its seconds.

    Raises:
        ValueError: there are too few steps, or they are too much alike to tell the terms apart.
    """
    measured = list(steps)
    names = Timing.__struct_fields__
    if len(measured) < len(names):
        raise ValueError(f"{len(measured)} steps tell no {len(names)} numbers")
    work = np.array([list(one) for one, _ in measured]) / np.array([[s] for _, s in measured])
    scale = np.abs(work).max(axis=0)
    if (scale == 0).any() or np.linalg.matrix_rank(work / scale) < len(names):
        raise ValueError("the steps are too much alike: prefills and decodes of several sizes each")
    found, *_ = np.linalg.lstsq(work / scale, np.ones(len(measured)), rcond=None)
    # What comes out below zero is noise around nothing.
    return Timing(**dict(zip(names, np.maximum(found / scale, 0.0).tolist(), strict=True)))
