"""What a sweep leaves beside its runs. It does not know how Hydra's launcher played them, nor what they found."""

from __future__ import annotations

import contextlib
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from simenv.errors import RunDirectoryError


class FolderPage(Callback):
    """The page of a finished ``--multirun``: its runs in one table, and the option in which they differ as an axis."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write `leaderboard.html` and `compare.html` into the sweep's folder; no run finished = no page."""
        from simenv.report.page import build_folder

        with contextlib.suppress(RunDirectoryError):  # what failed is told with its run
            print(build_folder(config.hydra.sweep.dir).absolute().as_uri())
