"""The table of the conformance suite: each cell adds its line to a file, from which the page is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpi_train.runtime.world import World
from tests.conformance.models import FORMS


@pytest.fixture
def record_cell(world: World) -> Callable[[str, str, str, str], None]:
    """Give a function that notes a cell in the file CONFORMANCE, if that variable names one."""

    def note(form: str, strategy: str, verdict: str, detail: str) -> None:
        path = os.environ.get("CONFORMANCE")
        if path and world.is_root:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps([form, FORMS[form].text, strategy, verdict, detail]) + "\n")

    return note


@pytest.fixture(scope="session", autouse=True)
def one_cluster() -> Iterator[None]:
    """Let all trainings of multiworker share TensorFlow's cluster, which a process makes once."""
    import tensorflow as tf

    made: list[tf.distribute.MultiWorkerMirroredStrategy] = []

    class Once(tf.distribute.MultiWorkerMirroredStrategy):
        def __new__(cls) -> tf.distribute.MultiWorkerMirroredStrategy:
            return made[0] if made else super().__new__(cls)

        def __init__(self) -> None:
            if not made:
                super().__init__()
                made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", Once)
        yield
