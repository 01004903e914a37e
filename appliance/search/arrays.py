"""The arrays of visual search. The graph process imports no more of it than its own modules and this one."""

from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
AnyVector = npt.NDArray[np.floating[Any]]
"""What callers hand in: any float type and any length but zero; it is normalised to a `Vector`."""
Positions = npt.NDArray[np.int64]
"""Labels, or slots."""
