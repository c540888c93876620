"""The page of a sweep."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from experiments.running.design import CONF
from tests.simenv.fake_run import write_run


def test_a_sweeps_folder_gets_its_page_from_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("config", ["+experiment=bias_loop_smoke", f"hydra.sweep.dir={tmp_path}"], True)
    callback = instantiate(config.hydra.callbacks.page)
    callback.on_multirun_end(config)
    assert (list(tmp_path.iterdir()), capsys.readouterr().out) == ([], ""), "no run was finished"
    for name in ("0", "1"):
        write_run(tmp_path / name, arms=("als",), controls=(), n_seeds=1, rounds=2, claims=False)
    callback.on_multirun_end(config)
    assert capsys.readouterr().out.splitlines() == [(tmp_path / "leaderboard.html").as_uri()]
    assert {"leaderboard.html", "compare.html"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_a_sweep_is_played_by_hydras_joblib_launcher(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs hydra-joblib-launcher")
    small = ("n_seeds=1", "n_users=20", "n_items=40", "rounds=2", "slate_size=4", "workers=0", "progress=false")
    command = [sys.executable, "run.py", "-m", "+experiment=bias_loop_smoke", "seed=0,1", *small]
    command += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={tmp_path}"]
    ended = subprocess.run(
        [*command, "arms=[popularity]"], cwd=CONF.parent, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr
    assert {"0", "1", "leaderboard.html"} <= {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "1" / "report.html").is_file()
