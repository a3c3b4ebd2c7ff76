"""The run in MLflow, where ``MLFLOW_TRACKING_URI`` names its server and the package is installed.

Server, experiment and credentials are those of MLflow's own environment variables.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpi_train.runs.loggers.base import About, scalars
from mpi_train.runs.record import EpochRecord, RunRecord
from mpi_train.runtime.errors import PlatformError

DEFAULTS = {
    # Seconds and retries of a request: with MLflow's own a server that is down takes many minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    # Our own lines may be read by a program.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Variables of MLflow's, unless the user has set them."""


class MLflow:
    """Args:
    record: The file that is kept in MLflow when the run has ended.
    """

    name = "MLflow"

    def __init__(self, record: Path) -> None:
        self._record = record
        self._mlflow: Any = None

    def start(self, about: About, epochs: Sequence[EpochRecord]) -> None:
        for variable, value in DEFAULTS.items():
            os.environ.setdefault(variable, value)
        try:
            import mlflow
        except ImportError as error:
            raise PlatformError(
                f"expected the package mlflow, as MLFLOW_TRACKING_URI is set. Got: {error}",
                remedy=".venv/bin/python -m pip install mlflow-skinny, or unset MLFLOW_TRACKING_URI",
            ) from error
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line for each retry
        self._mlflow = mlflow
        # Before MLflow's own, which would call a run finished that ended in any other way.
        atexit.register(self._leave)
        known = mlflow.search_runs(
            filter_string=f"tags.run_id = '{about.run_id}'", max_results=1, output_format="list"
        )
        if known:
            mlflow.start_run(run_id=known[0].info.run_id)
        else:
            mlflow.start_run(run_name=about.run_id, tags=_tags(about))
            mlflow.log_params(about.config)
        told = known[0].data.metrics.get("epoch", 0) if known else 0
        for record in epochs:
            if record.epoch > told:
                self.epoch(record)

    def rewind(self, epochs: Sequence[EpochRecord]) -> None:
        """MLflow forgets nothing: an epoch that is done again has two values, of which the later counts."""

    def epoch(self, record: EpochRecord) -> None:
        self._mlflow.log_metrics({"epoch": record.epoch, **scalars(record)}, step=record.epoch)

    def finish(self, record: RunRecord) -> None:
        run_id = self._mlflow.active_run().info.run_id
        self._mlflow.end_run()
        self._mlflow.log_artifact(str(self._record), run_id=run_id)

    def _leave(self) -> None:
        with suppress(Exception):  # it has been said that the server does not answer
            if self._mlflow.active_run() is not None:
                self._mlflow.end_run("KILLED")


def _tags(about: About) -> dict[str, str]:
    environment = about.environment
    found = {
        "run_id": about.run_id,
        "strategy": about.strategy,
        "world_size": about.world_size,
        "command": about.command,
        "git_commit": environment["git_commit"],
        "hosts": ",".join(dict.fromkeys(environment["hosts"])),
        "slurm_job_id": environment["slurm_job_id"],
    }
    return {name: str(value) for name, value in found.items() if value is not None}
