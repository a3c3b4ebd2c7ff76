"""The yardstick does the same work: PyTorch trains the weights that the suite's own loop trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpi_train.data import synthetic
from mpi_train.data.shards import write_shards
from mpi_train.runs.checkpoint_file import CheckpointFile
from mpi_train.runs.record import read_run
from tests.programs import assert_one_message, start

pytestmark = [pytest.mark.peers, pytest.mark.mpi_skip, pytest.mark.timeout(240)]


@pytest.mark.parametrize("model", ["cnn", "mlp", "resnet"])
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 30, 3)], ids=["grey", "colour"])
def test_with_keras_weights_its_models_are_those_of_keras(model: str, shape: tuple[int, int, int]) -> None:
    import torch

    from mpi_train.models import zoo
    from mpi_train.strategies.pytorch import models as torch_models
    from mpi_train.strategies.pytorch.loop import as_input

    theirs = torch_models.build(model, shape, 10, dtype="float32")
    ours = zoo.build(model, shape, 10, seed=1, dtype="float32")
    views = torch_models.keras_views(theirs)
    for view, variable in zip(views, ours.variables, strict=True):
        view.copy_(torch.from_numpy(variable.numpy()))
    images = np.random.default_rng(1).integers(0, 256, (7, *shape), np.uint8)
    # Training updates BatchNorm's moving statistics, which evaluation then reads.
    for training in (True, True, False):
        outputs = theirs.train(training)(as_input(torch.from_numpy(images)))
        expected = ours(images.astype(np.float32) / 255, training=training)
        np.testing.assert_allclose(outputs.detach().numpy(), expected, atol=1e-5)
    for view, variable in zip(views, ours.variables, strict=True):
        np.testing.assert_allclose(view.numpy(), variable.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_its_optimizers_are_those_of_keras(name: str) -> None:
    import keras
    import torch

    from mpi_train.models import optimizers
    from mpi_train.strategies.pytorch.loop import optimizer_like

    like = optimizers.build(name, None)
    ours = keras.Variable(np.zeros((1, 6), np.float32))
    layer = torch.nn.Linear(6, 1, bias=False)
    layer.weight.detach().zero_()
    theirs = optimizer_like(like, layer)
    # The smallest are of the size of Adam's epsilon, where it matters what that is added to.
    gradient = np.array([[1.0, -1e-3, 1e-5, -1e-6, 1e-7, 1e-8]], np.float32)
    for step in range(1, 6):
        like.apply([keras.ops.convert_to_tensor(gradient / step)], [ours])
        layer.weight.grad = torch.from_numpy(gradient / step)
        theirs.step()
        np.testing.assert_allclose(layer.weight.detach().numpy(), ours.numpy(), rtol=1e-4)


def weights_after_an_epoch(
    job: str, flags: list[str], model: str, batch_size: int, rate: float, data: Path, out: Path
) -> list[np.ndarray]:
    """Trains on 2 ranks with SGD; the model's variables as Keras orders them."""
    from mpi_train.models import zoo
    from mpi_train.models.flat import FlatModel

    result = start(
        job, "--dataset", "synthetic", "--data", data, "--model", model, "--batch-size", str(batch_size),
        "--epochs", "1", "--optimizer", "sgd", "--learning-rate", str(rate), "--out", out, *flags, ranks=2,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    file = CheckpointFile(out / "checkpoints/epoch-0002-step-0000000.safetensors")
    arrays = {name: file.read(name, 0) for name in file.owners}
    if job == "ddp":
        return [arrays[f"model/{i}"] for i in range(sum(name.startswith("model/") for name in arrays))]
    flat = FlatModel(zoo.build(model, (28, 28, 1), 10, seed=1, dtype="float32"))
    flat.weights.assign(arrays["weights"])
    for i, state in enumerate(flat.states):
        state.assign(arrays[f"states/{i}"])
    return [variable.numpy() for variable in flat.export().variables]


# 235 examples are 20 steps of 12, the last of 7, or 4 of 60: an odd number is left for 2 ranks. BatchNorm
# magnifies rounding several times with each step, the more the smaller the batch.
@pytest.mark.launches
@pytest.mark.parametrize(("model", "batch_size", "rate"), [("cnn", 12, 0.05), ("resnet", 60, 0.0002)])
def test_after_an_epoch_the_weights_are_those_of_our_own_loop(
    model: str, batch_size: int, rate: float, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    write_shards(synthetic.draw(seed=1, num_train=235, num_test=31), data, num_shards=2, seed=1)
    gradients = ["--average", "gradients"]
    ours = weights_after_an_epoch("mpi", gradients, model, batch_size, rate, data, tmp_path / "mpi")
    theirs = weights_after_an_epoch("ddp", [], model, batch_size, rate, data, tmp_path / "ddp")
    for mine, other in zip(ours, theirs, strict=True):
        # Weights are small beside 1; the moving variances, some of which are about 1, are the rest of it.
        np.testing.assert_allclose(mine, other, atol=1e-5, rtol=3e-5)
    mine, other = (read_run(tmp_path / job / "run.json") for job in ("mpi", "ddp"))
    assert other.test_accuracy == mine.test_accuracy
    for name in ("train_loss", "test_loss"):
        assert getattr(other.epochs[0], name) == pytest.approx(getattr(mine.epochs[0], name), rel=1e-5)


@pytest.mark.launches
def test_bfloat16_and_the_record(tiny_shards: Path, tmp_path: Path) -> None:
    result = start(
        "ddp", "--dataset", "synthetic", "--data", tiny_shards, "--epochs", "3", "--dtype", "bfloat16",
        "--out", tmp_path, ranks=3,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    record = read_run(tmp_path / "run.json")
    assert (record.strategy, record.dtype, record.world_size) == ("ddp", "bfloat16", 3)
    assert record.environment["pytorch"]
    assert list(record.startup) == ["import", "load", "build", "trace"]
    assert record.epochs[-1].train_loss < record.epochs[0].train_loss
    assert record.test_accuracy > 0.3


@pytest.mark.launches
@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--model", "package.module:function"], "PyTorch's models are cnn, mlp, resnet"),
        (["--optimizer", "lamb"], "in PyTorch there are adam and sgd. Got: lamb"),
    ],
)
def test_what_it_cannot_train_is_refused(
    flags: list[str], text: str, tiny_shards: Path, tmp_path: Path
) -> None:
    result = start("ddp", "--dataset", "synthetic", "--data", tiny_shards, "--out", tmp_path, *flags, ranks=2)
    assert_one_message(result, 2, text)
