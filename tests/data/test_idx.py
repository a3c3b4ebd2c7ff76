from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from mpi_train.data.idx import read_idx
from mpi_train.runtime.errors import DataError

HEADER = bytes([0, 0, 8, 2, 0, 0, 0, 3, 0, 0, 0, 4])
CONTENT = bytes(range(12))


def test_reads_what_the_header_says(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(HEADER + CONTENT))
    array = read_idx(path, (3, 4))
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, np.arange(12).reshape(3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + CONTENT[:-1], "expected 12 bytes after the header. Got: 11 bytes"),
        (HEADER + CONTENT + b"!", "expected 12 bytes after the header. Got: more"),
        (HEADER[:5], "expected an IDX header of 12 bytes. Got: 5"),
        (
            b"\0\0\x0d\x02" + HEADER[4:] + CONTENT,
            "expected the IDX magic number 00000802. Got: 00000d02",
        ),
        (
            b"\0\0\x08\x03" + HEADER[4:] + CONTENT,
            "expected the IDX magic number 00000802. Got: 00000803",
        ),
        (HEADER[:4] + b"\xff" * 8 + CONTENT, r"shape \(3, 4\). Got: \(4294967295, 4294967295\)"),
    ],
)
def test_refuses_other_content(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=message):
        read_idx(path, (3, 4))


def test_refuses_a_stream_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(HEADER + CONTENT)[:-9])
    with pytest.raises(DataError, match="compressed with gzip"):
        read_idx(path, (3, 4))


def test_refuses_what_is_not_gzip_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    with pytest.raises(DataError, match="No such file"):
        read_idx(path, (3, 4))
    path.write_bytes(HEADER + CONTENT)
    with pytest.raises(DataError, match="Not a gzipped file"):
        read_idx(path, (3, 4))
