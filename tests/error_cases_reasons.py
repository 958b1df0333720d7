"""Cases of tests/test_errors.py: reasons of the solver that need graphs of a rare shape."""

from __future__ import annotations

import numpy as np

from tests.error_cases_method import COPY, method, widened
from tests.test_fixed_sizes import FEED

method("… changes old entries only")(
    widened(FEED + "put = ScatterElements y at values\nz = LayerNormalization put g b\n", put={"axis": -1},
            more={"at": np.zeros((1, 1, 1), np.int64), "values": np.ones((1, 1, 1), np.float32)}))

method("parts of the axis would be copied differently often")(
    widened(FEED + "e = MatMul y beside\nall = Concat y e\nturned = Transpose all\nz = MatMul all turned\n", COPY, all={"axis": -1}, turned={"perm": [0, 2, 1]}))
