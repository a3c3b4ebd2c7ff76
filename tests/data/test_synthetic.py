from __future__ import annotations

import numpy as np
import pytest

from mpi_train.data.examples import Examples
from mpi_train.data.sources import OFFICIAL
from mpi_train.data.synthetic import STAND_INS, draw, stand_in_for


def test_the_seed_decides_on_every_machine() -> None:
    raw = draw(1, 200, 50)
    assert draw(1, 200, 50).sha256 == raw.sha256
    assert draw(2, 200, 50).sha256 != raw.sha256
    # Integer arithmetic alone gives the same bytes with every processor and version of NumPy.
    assert raw.sha256 == "10f9f32c57cf64848165a960245b5ba3fa176b6fbcba7edc1aac11ba98cd22a6"


@pytest.mark.parametrize("name", STAND_INS)
def test_images_differ_and_classes_are_learnable_but_not_by_a_linear_model_alone(name: str) -> None:
    """At full size the cnn reaches about 0.9 in three epochs on ``synthetic``; this is a small version."""
    raw = draw(1, 3000, 500, name)
    assert (raw.name, raw.num_classes) == (name, 10)
    for split, n in ((raw.train, 3000), (raw.test, 500)):
        assert split.images.shape == (n, *STAND_INS[name].image_shape)
        assert split.images.dtype == split.labels.dtype == np.uint8
        np.testing.assert_array_equal(np.bincount(split.labels), n // 10)
    lit = (raw.train.images > 0).reshape(3000, -1).mean(axis=1)
    assert lit.min() > 0.1
    assert lit.max() < 1.0
    assert len(np.unique(raw.train.images.reshape(3000, -1), axis=0)) == 3000
    assert 0.5 < _linear_accuracy(raw.train, raw.test) < 0.93


def _linear_accuracy(train: Examples, test: Examples) -> float:
    """Return the test accuracy of least squares on one-hot labels with a little ridge."""

    def features(split: Examples) -> np.ndarray:
        flat = split.images[:, ::2, ::2].reshape(len(split), -1) / 255.0
        return np.hstack([flat, np.ones((len(split), 1))])

    x = features(train)
    weights = np.linalg.solve(x.T @ x + 10.0 * np.eye(x.shape[1]), x.T @ np.eye(10)[train.labels])
    return float(np.mean((features(test) @ weights).argmax(1) == test.labels))


@pytest.mark.parametrize("dataset", OFFICIAL)
def test_each_real_set_has_a_stand_in_of_its_shape(dataset: str) -> None:
    name = stand_in_for(dataset)
    assert name is not None
    kind, real = STAND_INS[name], OFFICIAL[dataset]
    assert (kind.num_train, kind.num_test) == (real.num_train, real.num_test)
    assert kind.image_shape[:2] == ((32, 32) if dataset == "cifar10" else (28, 28))


def test_other_data_sets_have_no_stand_in() -> None:
    assert stand_in_for("other") is None
    assert stand_in_for("synthetic") is None
