"""Logger for MLflow, used if ``MLFLOW_TRACKING_URI`` is set.

MLflow's own environment variables give the server, the experiment and the credentials.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpi_train.runs.loggers.base import Logger, RunInfo, scalars
from mpi_train.runs.record import EpochRecord, RunRecord
from mpi_train.runtime.errors import PlatformError

DEFAULTS = {
    # Seconds and retries of a request: MLflow's defaults wait many minutes for a server that is down.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    # Programs may parse the standard output of a job.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Variables of MLflow that are set unless the user has set them."""


class MLflow(Logger):
    """Run in MLflow, which keeps the file ``record`` as an artifact at the end.

    MLflow forgets nothing: an epoch that is repeated after a rollback has two values, and the later counts.
    """

    name = "MLflow"

    def __init__(self, record: Path) -> None:
        self._record = record

    def start(self, info: RunInfo, epochs: Sequence[EpochRecord]) -> None:
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
        self._mlflow: Any = mlflow
        # Registered before MLflow registers its own function, which reports an interrupted run as finished.
        atexit.register(self._leave)
        known = mlflow.search_runs(
            filter_string=f"tags.run_id = '{info.run_id}'", max_results=1, output_format="list"
        )
        if known:
            mlflow.start_run(run_id=known[0].info.run_id)
        else:
            mlflow.start_run(run_name=info.run_id, tags=_tags(info))
            mlflow.log_params(info.config)
        last_logged = known[0].data.metrics.get("epoch", 0) if known else 0
        for record in epochs:
            if record.epoch > last_logged:
                self.epoch(record)

    def epoch(self, record: EpochRecord) -> None:
        self._mlflow.log_metrics({"epoch": record.epoch, **scalars(record)}, step=record.epoch)

    def finish(self, record: RunRecord) -> None:
        run_id = self._mlflow.active_run().info.run_id
        self._mlflow.end_run()
        self._mlflow.log_artifact(str(self._record), run_id=run_id)

    def _leave(self) -> None:
        with suppress(Exception):  # the user has been warned if the server does not answer
            if self._mlflow.active_run() is not None:
                self._mlflow.end_run("KILLED")


def _tags(info: RunInfo) -> dict[str, str]:
    tags = {name: getattr(info, name) for name in ("run_id", "strategy", "world_size", "command")}
    tags |= {name: info.environment[name] for name in ("git_commit", "slurm_job_id")}
    tags["hosts"] = ",".join(dict.fromkeys(info.environment["hosts"]))
    return {name: str(value) for name, value in tags.items() if value is not None}
