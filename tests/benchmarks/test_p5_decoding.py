"""The benchmark of constrained decoding: three ways, the same lists."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_decoding_finds_the_lists_of_generate(tmp_path: Path):
    arguments = ["--items", "150", "--users", "8", "--batch", "4", "--out", str(tmp_path / "x.json")]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks/p5_decoding.py"), *arguments]
    subprocess.run(command, capture_output=True, check=True, cwd=ROOT, env=environment)
    results = json.loads((tmp_path / "x.json").read_text())
    assert results["beam"]["same_lists"] == 1
    assert results["exact"]["users_per_s"] > 0
