"""Cases of tests/test_errors.py: reasons of the solver that need graphs of a rare shape."""

from __future__ import annotations

import numpy as np

from tests.error_cases_method import method, widened
from tests.test_fixed_sizes import FEED

method("… changes old entries only")(
    widened(FEED + "put = ScatterElements y at values\nz = LayerNormalization put g b\n", put={"axis": -1},
            more={"at": np.zeros((1, 1, 1), np.int64), "values": np.ones((1, 1, 1), np.float32)}))
