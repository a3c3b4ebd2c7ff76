from __future__ import annotations

import numpy as np
import pytest

from mpi_train.data.examples import Examples, RawData
from mpi_train.data.sources import OFFICIAL
from mpi_train.data.synthetic import STAND_INS, draw, stand_in_for


@pytest.fixture(scope="module")
def garments() -> RawData:
    return draw(1, num_train=6000, num_test=1000)


def test_shapes_and_classes(garments: RawData) -> None:
    assert garments.name == "synthetic"
    assert garments.num_classes == 10
    for split, n in ((garments.train, 6000), (garments.test, 1000)):
        assert split.images.shape == (n, 28, 28)
        assert split.labels.shape == (n,)
        assert split.images.dtype == split.labels.dtype == np.uint8
        np.testing.assert_array_equal(np.bincount(split.labels), n // 10)


def test_the_seed_decides(garments: RawData) -> None:
    assert draw(1, 6000, 1000).sha256 == garments.sha256
    assert draw(2, 6000, 1000).sha256 != garments.sha256


def test_no_image_is_empty_full_or_drawn_twice(garments: RawData) -> None:
    images = np.concatenate([garments.train.images, garments.test.images])
    lit = (images > 0).mean(axis=(1, 2))
    assert lit.min() > 0.02
    assert lit.max() < 0.95
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_kinds_can_be_told_apart_but_not_by_a_linear_model_alone(garments: RawData) -> None:
    """Full size, softmax regression reaches about 0.79 and the cnn about 0.94; this is the small version."""
    accuracy = _linear_accuracy(garments.train, garments.test)
    assert 0.5 < accuracy < 0.85


def _linear_accuracy(train: Examples, test: Examples) -> float:
    """Test accuracy of least squares on one-hot labels with a little ridge."""

    def features(split: Examples) -> np.ndarray:
        flat = split.images.reshape(len(split), -1) / 255.0
        return np.hstack([flat, np.ones((len(split), 1))])

    x = features(train)
    weights = np.linalg.solve(x.T @ x + 10.0 * np.eye(x.shape[1]), x.T @ np.eye(10)[train.labels])
    return float(np.mean((features(test) @ weights).argmax(1) == test.labels))


@pytest.mark.parametrize("dataset", OFFICIAL)
def test_each_real_set_has_a_stand_in_of_its_shape(dataset: str) -> None:
    kind, real = STAND_INS[stand_in_for(dataset)], OFFICIAL[dataset]
    assert (kind.num_train, kind.num_test) == (real.num_train, real.num_test)
    assert len(kind.class_names) == len(real.class_names) == 10
    assert kind.image_shape[:2] == ((32, 32) if dataset == "cifar10" else (28, 28))


@pytest.mark.parametrize(
    ("name", "low", "high"), [("synthetic_mnist", 0.6, 0.97), ("synthetic_cifar10", 0.2, 0.7)]
)
def test_the_others_are_neither_trivial_nor_solvable(name: str, low: float, high: float) -> None:
    raw = draw(1, 3000, 500, name)
    assert raw.name == name
    assert raw.train.images.shape == (3000, *STAND_INS[name].image_shape)
    assert raw.train.images.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(raw.test.labels), 50)
    assert len(np.unique(raw.train.images.reshape(3000, -1), axis=0)) == 3000
    assert low < _linear_accuracy(raw.train, raw.test) < high
