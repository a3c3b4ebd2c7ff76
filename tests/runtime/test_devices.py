"""How a process takes up TensorFlow."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORTS = """
import sys
from mpi_train.runtime import devices

with devices.lean_imports():
    import keras
assert keras.layers.Dense(1)
assert not [name for name in sys.modules if name.startswith("matplotlib")]
import matplotlib.figure
assert matplotlib.figure.Figure()
with devices.lean_imports():
    import matplotlib.axes
"""


@pytest.mark.launches
def test_keras_does_not_bring_matplotlib_which_can_still_be_had() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
