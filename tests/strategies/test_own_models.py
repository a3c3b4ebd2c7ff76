"""Models of the user's own: what their functions may look like, what is refused, what a run leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import pytest

from mpi_train.runtime.world import World
from tests.conformance.models import chain
from tests.in_process import TrainJob, refused

Launch = Callable[..., "subprocess.CompletedProcess[str]"]

HERE = __name__


def failing(input_shape: tuple[int, int, int]) -> keras.Model:
    raise KeyError("width")


def of_width(input_shape: tuple[int, int, int], width: int) -> keras.Model:
    return chain(input_shape, 10)


def of_any(**options: object) -> keras.Model:
    assert options.keys() == {"input_shape", "num_classes"}
    return chain((28, 28, 1), 10)


def no_model() -> str:
    return "a model"


def five_outputs(input_shape: tuple[int, int, int]) -> keras.Model:
    return chain(input_shape, 5)


def colour_images() -> keras.Model:
    return chain((32, 32, 3), 10)


def unfit_loss(input_shape: tuple[int, int, int]) -> keras.Model:
    model = chain(input_shape, 10)
    model.compile("sgd", "categorical_crossentropy")
    return model


made: list[keras.Model] = []


def made_once(input_shape: tuple[int, int, int]) -> keras.Model:
    """As where a module makes its model when it is imported."""
    made.append(chain(input_shape, 10))
    return made[0]


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("failing", "expected a function that returns a Keras model. Got: KeyError: 'width'"),
        ("of_width", "Got: the parameter width"),
        ("no_model", "expected a function that returns a Keras model. Got: str"),
        ("five_outputs", "expected output (None, 10), one number for each class. Got: (None, 5)"),
        ("colour_images", "expected a model that takes inputs of shape (28, 28, 1). Got: ValueError"),
        ("unfit_loss", "expected a loss and metrics that fit its outputs and the targets. Got: ValueError"),
        ("missing", "expected a function that can be imported"),
    ],
)
def test_a_function_that_cannot_be_used_is_one_error_on_all_ranks(
    function: str, text: str, train_job: TrainJob
) -> None:
    with refused(2, text):
        train_job("mpi", "--model", f"{HERE}:{function}", "--epochs", "1")


@pytest.mark.mpi
def test_a_function_may_take_any_keywords(train_job: TrainJob) -> None:
    record = train_job("mpi", "--model", f"{HERE}:of_any", "--epochs", "1")
    assert record.epochs[0].test_metrics["accuracy"] > 0


@pytest.mark.mpi_skip
@pytest.mark.parametrize("strategy", ["mirrored", "custom_dataset"])
def test_a_model_that_was_made_before_the_strategy_is_refused(strategy: str, train_job: TrainJob) -> None:
    made[:] = [chain((28, 28, 1), 10)]
    with refused(2, "expected a function that makes a new model at each call"):
        train_job(strategy, "--model", f"{HERE}:made_once", "--epochs", "1")


@pytest.mark.mpi_skip
def test_another_model_under_the_same_name_is_not_resumed(
    train_job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--model", f"{HERE}:of_any", "--checkpoint-every", "10")
    train_job("custom", *flags, "--epochs", "1")
    (train_job.path("run.json")).unlink()  # as if it had been interrupted
    monkeypatch.setattr(sys.modules[HERE], "of_any", lambda: chain((28, 28, 1), 10, keras.layers.Dense(4)))
    with refused(2, "architecture is"):
        train_job("custom", *flags, "--epochs", "2")


# Plain Keras, in a process that does not find this package.
LOAD = """
import sys
sys.modules["mpi_train"] = None
import keras, numpy as np
model = keras.saving.load_model(sys.argv[1])
arrays = np.load(sys.argv[2])
loss, accuracy = model.evaluate(arrays["images"][..., None] / np.float32(255), arrays["labels"], verbose=0)
print(loss, accuracy, int(model.optimizer.iterations.numpy()), len(model.optimizer.variables))
"""


@pytest.mark.launches
@pytest.mark.parametrize(("job", "ranks"), [("mpi", 2), ("pipeline", 2), ("mirrored", 1)])
def test_the_trained_model_loads_in_plain_keras(
    job: str, ranks: int, launch: Launch, tiny_shards: Path, tmp_path: Path
) -> None:
    import numpy as np

    from mpi_train.data.shards import ShardSet

    done = launch(
        job, "--dataset", "synthetic", "--data", tiny_shards, "--model", "mlp", "--epochs", "1",
        "--out", tmp_path, ranks=ranks,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["saved_model"] == "model.keras"
    test = ShardSet.open(tiny_shards, "synthetic").read("test")
    np.savez(tmp_path / "test.npz", images=test.images, labels=test.labels)
    words = [sys.executable, "-c", LOAD, tmp_path / "model.keras", tmp_path / "test.npz"]
    loaded = subprocess.run(words, cwd="/", capture_output=True, text=True, check=True)
    loss, accuracy, iterations, num_variables = loaded.stdout.split()[-4:]
    assert float(accuracy) == pytest.approx(record["epochs"][0]["test_metrics"]["accuracy"], abs=1e-6)
    assert float(loss) == pytest.approx(record["epochs"][0]["test_loss"], rel=1e-5)
    if job != "pipeline":  # whose optimizers stay with their stages
        assert int(iterations) == -(-509 // 64)
    assert int(num_variables) == 2 + 2 * 4  # Adam's two slots of each weight
    evaluated = launch(
        "evaluate", "--saved-model", tmp_path / "model.keras", "--dataset", "synthetic",
        "--data", tiny_shards, ranks=ranks,
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stderr
    assert f"accuracy {float(accuracy):.6f}" in evaluated.stdout


@pytest.mark.mpi_skip
def test_a_model_that_keras_cannot_save_leaves_its_weights(
    train_job: TrainJob, capsys: pytest.CaptureFixture[str]
) -> None:
    record = train_job("custom", "--model", f"{HERE}:unsaveable", "--epochs", "1")
    assert record.saved_model == "model.weights.h5"
    assert train_job.path("model.weights.h5").stat().st_size > 0
    assert "model.keras: not written" in capsys.readouterr().out


class Unsaveable(keras.layers.Layer):
    """Layer whose options Keras cannot know."""

    def __init__(self, scale: object) -> None:
        super().__init__()
        self.scale = scale

    def call(self, inputs: object) -> object:
        return inputs


def unsaveable(input_shape: tuple[int, int, int]) -> keras.Model:
    return chain(input_shape, 10, Unsaveable(object()))


@pytest.mark.launches
@pytest.mark.parametrize(
    "setting", [{"backend": "theano"}, {"image_data_format": "channels_first"}, {"floatx": "float64"}]
)
def test_settings_of_keras_in_the_home_folder_do_not_matter(
    setting: dict[str, str],
    launch: Launch,
    tiny_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    (tmp_path / "keras.json").write_text(json.dumps(setting))
    done = launch(
        "baseline", "--dataset", "synthetic", "--data", tiny_shards, "--model", "cnn", "--epochs", "1",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/run.json").read_text())["dtype"] == "float32"


@pytest.mark.mpi
def test_the_record_has_the_models_own_metrics(train_job: TrainJob, world: World) -> None:
    record = train_job("mpi", "--epochs", "1", "--metrics", "sparse_top_k_categorical_accuracy,accuracy")
    assert record.metric == "sparse_top_k_categorical_accuracy"
    assert record.epochs[0].test_metrics.keys() == {"sparse_top_k_categorical_accuracy", "accuracy"}
    assert record.score >= record.epochs[0].test_metrics["accuracy"]
