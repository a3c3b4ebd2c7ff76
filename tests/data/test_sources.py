from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import io
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpi_train.data import download, sources
from mpi_train.data.sources import MissingRawDataError, find_raw, how_to_prepare, require_dataset
from mpi_train.runtime.errors import DataError, UsageError


class Mirror(http.server.SimpleHTTPRequestHandler):
    """Server of a folder that cuts its first ``cut`` answers short."""

    cut = 0
    requests = 0

    def do_GET(self) -> None:
        Mirror.requests += 1
        if Mirror.cut <= 0:
            return super().do_GET()
        Mirror.cut -= 1
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        return None

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Print nothing."""


@pytest.fixture
def mirror(idx_files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Mirror]]:
    """A server on this machine that has the files, as the second mirror after one that is gone."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{unused.getsockname()[1]}/"
    Mirror.cut = Mirror.requests = 0
    handler = functools.partial(Mirror, directory=str(idx_files))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        use_mirrors(monkeypatch, gone, f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
        yield Mirror
        server.shutdown()


def use_mirrors(monkeypatch: pytest.MonkeyPatch, *mirrors: str) -> None:
    spec = dataclasses.replace(sources.OFFICIAL["fashion_mnist"], mirrors=mirrors)
    monkeypatch.setitem(sources.OFFICIAL, "fashion_mnist", spec)


def cached(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "fashion_mnist").iterdir())


def test_the_named_folder_comes_first(idx_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_MNIST_DIR", "nowhere")
    raw = find_raw("fashion_mnist", idx_files)
    assert raw.name == "fashion_mnist"
    assert raw.train.images.shape == (30, 28, 28)
    assert raw.test.labels.shape == (12,)
    assert (raw.num_classes, raw.image_shape) == (10, (28, 28))
    content = (raw.train.images, raw.train.labels, raw.test.images, raw.test.labels)
    assert raw.sha256 == hashlib.sha256(b"".join(array.tobytes() for array in content)).hexdigest()


def test_then_the_variable_then_the_keras_cache(
    idx_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(idx_files, tmp_path / "keras" / "datasets" / "fashion-mnist")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    from_keras = find_raw("fashion_mnist")
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tmp_path / "gone"))
    with pytest.raises(DataError, match="FASHION_MNIST_DIR: expected a folder"):
        find_raw("fashion_mnist")
    monkeypatch.setenv("FASHION_MNIST_DIR", str(idx_files))
    assert find_raw("fashion_mnist").sha256 == from_keras.sha256


def test_then_a_download_past_a_mirror_that_is_gone(mirror: type[Mirror], tmp_path: Path) -> None:
    assert len(find_raw("fashion_mnist").train) == 30
    assert mirror.requests == 4
    assert len(cached(tmp_path)) == 4
    find_raw("fashion_mnist")
    assert mirror.requests == 4, "what is in the cache is not fetched again"


def test_a_download_cut_short_is_tried_again(mirror: type[Mirror], tmp_path: Path) -> None:
    mirror.cut = 2
    assert len(find_raw("fashion_mnist").train) == 30
    assert mirror.requests == 6


def test_a_download_always_cut_short_leaves_nothing_behind(mirror: type[Mirror], tmp_path: Path) -> None:
    mirror.cut = 1000
    with pytest.raises(MissingRawDataError, match="expected all files from one of the mirrors") as caught:
        find_raw("fashion_mnist")
    assert mirror.requests == download.RETRIES + 1
    assert cached(tmp_path) == []
    assert "make data DATASET=fashion_mnist" in str(caught.value)


def test_a_mirror_with_other_content_is_refused(
    mirror: type[Mirror], idx_files: Path, tmp_path: Path
) -> None:
    (idx_files / "train-images-idx3-ubyte.gz").write_bytes(b"something else")
    with pytest.raises(MissingRawDataError, match=r"hash|SHA256"):
        find_raw("fashion_mnist")
    assert cached(tmp_path) == []


def test_a_mirror_that_sends_without_end_is_cut_off(
    mirror: type[Mirror], idx_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (idx_files / "train-images-idx3-ubyte.gz").write_bytes(bytes(3 << 20))
    with pytest.raises(MissingRawDataError, match=r"expected \d+ bytes\. Got: more"):
        find_raw("fashion_mnist")


def test_a_stalled_mirror_is_given_up_and_the_next_one_used(
    mirror: type[Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUTS_S", (1.0, 0.3))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        _, good = sources.OFFICIAL["fashion_mnist"].mirrors
        use_mirrors(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/", good)
        assert len(find_raw("fashion_mnist").train) == 30
    assert mirror.requests == 4


def test_a_bar_on_a_terminal(mirror: type[Mirror], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", shown)
    find_raw("fashion_mnist")
    assert "t10k-labels-idx1-ubyte.gz" in shown.getvalue()
    assert "100%" in shown.getvalue()


def test_without_a_network_it_gives_up_within_seconds(
    idx_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_mirrors(monkeypatch, "http://mirror.invalid/", "http://127.0.0.1:1/")
    start_s = time.monotonic()
    with pytest.raises(MissingRawDataError, match="no Fashion-MNIST found") as caught:
        find_raw("fashion_mnist")
    assert time.monotonic() - start_s < 10
    assert "make data DATASET=synthetic" in str(caught.value)


def test_a_cache_that_cannot_be_written_is_named(
    idx_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MPI_TRAIN_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="cache folder that can be written"):
        find_raw("fashion_mnist")


@pytest.mark.parametrize("damage", ["truncated", "altered"])
@pytest.mark.parametrize("place", ["source", "variable", "keras", "cache"])
def test_wherever_a_file_is_found_its_hash_counts(
    idx_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, damage: str
) -> None:
    folder = {
        "source": tmp_path / "somewhere",
        "variable": tmp_path / "somewhere",
        "keras": tmp_path / "keras" / "datasets" / "fashion-mnist",
        "cache": tmp_path / "cache" / "fashion_mnist",
    }[place]
    shutil.copytree(idx_files, folder)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    if place == "variable":
        monkeypatch.setenv("FASHION_MNIST_DIR", str(folder))
    victim = folder / "t10k-images-idx3-ubyte.gz"
    good = victim.read_bytes()
    victim.write_bytes(good[:-5] if damage == "truncated" else good[:50] + b"?" + good[51:])
    with pytest.raises(DataError) as caught:
        find_raw("fashion_mnist", folder if place == "source" else None)
    assert not isinstance(caught.value, MissingRawDataError), "corrupt is not the same as missing"
    expected = sources.OFFICIAL["fashion_mnist"].files[2].sha256
    for part in (str(victim), expected, hashlib.sha256(victim.read_bytes()).hexdigest(), f"rm {victim}"):
        assert part in str(caught.value)


def test_a_named_folder_without_a_file_is_an_error(idx_files: Path) -> None:
    (idx_files / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"--source: .* without train-labels-idx1-ubyte.gz") as caught:
        find_raw("fashion_mnist", idx_files)
    assert not isinstance(caught.value, MissingRawDataError)


def test_unknown_data_sets_are_refused_with_the_near_names() -> None:
    with pytest.raises(UsageError, match="Got: fashion-mnst") as caught:
        require_dataset("fashion-mnst")
    assert caught.value.remedy == "--dataset fashion_mnist"
    for name in sources.DATASETS:
        require_dataset(name)


def test_a_data_set_without_a_stand_in_has_its_own_error_and_no_hint(
    idx_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dataclasses.replace(sources.OFFICIAL["fashion_mnist"], title="Other", variable="OTHER_DIR")
    monkeypatch.setitem(sources.OFFICIAL, "other", spec)
    monkeypatch.setattr(sources, "DATASETS", (*sources.DATASETS, "other"))
    with pytest.raises(MissingRawDataError, match="no Other found") as caught:
        find_raw("other")
    assert "make data DATASET=other on a machine with a network" in str(caught.value)
    assert "synthetic" not in str(caught.value)


def test_a_drawn_data_set_has_no_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--source"):
        find_raw("synthetic", tmp_path)


def test_the_remedy_is_a_command_for_the_folder_in_question() -> None:
    assert how_to_prepare("synthetic") == "make data DATASET=synthetic"
    assert how_to_prepare("synthetic", Path("data/synthetic")) == "make data DATASET=synthetic"
    assert how_to_prepare("synthetic", Path("/scratch/s")).endswith("--dataset synthetic --data /scratch/s")


def test_the_official_files_are_read(official_files: Path) -> None:
    raw = find_raw("fashion_mnist", official_files)
    assert raw.train.images.shape == (60_000, 28, 28)
    assert raw.test.images.shape == (10_000, 28, 28)
    assert [int((raw.test.labels == label).sum()) for label in range(10)] == [1000] * 10
    assert raw.class_names[raw.train.labels[0]] == "Ankle boot"
