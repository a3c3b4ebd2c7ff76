"""Chart of a federated run: classes of each client, and accuracy of the final model on its data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpi_train.runtime import files


def draw(
    clients: Sequence[dict[str, Any]], class_names: Sequence[str], test_accuracy: float, path: Path
) -> None:
    """Write the chart as PNG.

    Args:
        clients: Entries of ``clients.json``.
        class_names: Name of each label.
        test_accuracy: Accuracy of the final model on the test set.
        path: Path of the file.
    """
    # Without pyplot, which looks for a display and keeps figures open.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.2 + 0.28 * len(clients)), layout="constrained")
    classes, score = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = range(len(clients))
    colours = mpl.colormaps["tab20" if len(class_names) > 10 else "tab10"]
    counts = np.array([client["classes"] for client in clients])
    left = counts.cumsum(axis=1) - counts
    for i, name in enumerate(class_names):
        classes.barh(places, counts[:, i], left=left[:, i], color=colours(i % colours.N), label=name)
    classes.set_yticks(places, [f"client {client['client']}" for client in clients])
    classes.invert_yaxis()
    classes.set_xlabel("training examples")
    classes.set_title("Data of each client")
    score.plot([client["accuracy"] for client in clients], places, "o", color="#222222")
    score.axvline(test_accuracy, color="#0072B2", linestyle="--")
    score.set_xlabel(f"accuracy on its own data (dashed: test set, {test_accuracy:.4f})")
    score.set_title("Final model on it")
    score.grid(axis="x", linewidth=0.5)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
