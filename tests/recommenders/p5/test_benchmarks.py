"""The benchmarks of P5 run, and go on where they stopped."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def bench(script: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment).stdout


@pytest.mark.slow
def test_the_gpu_benchmark_is_resumable(tmp_path: Path):
    first = bench("p5_gpu.py", "--tiny", "--out", tmp_path, "--parts", "quality,speed,decoding", "--minutes", 0.05)
    assert "jobs left" in first
    second = bench("p5_gpu.py", "--tiny", "--out", tmp_path, "--parts", "quality,speed,decoding", "--minutes", 9)
    assert second.strip().endswith("all done")
    said = [line for line in (first + second).splitlines() if "|" in line and "time limit" not in line]
    done = [line.split("s  ", 1)[1] for line in said]
    assert len(done) == len(set(done))
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(done) == set(results)
    assert not any("error" in row for row in results.values())
    assert all(row["beam"]["same_lists"] == 1 for row in results.values() if row["job"]["part"] == "decoding")
    written = (tmp_path / "table.md").read_text()
    assert all(row["job"]["label"] in written for row in results.values())
    assert not list((tmp_path / "checkpoints").glob("*.pt"))


@pytest.fixture
def p5_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("p5_gpu")


def test_the_gpu_benchmark_needs_little_installed():
    absent = ("hydra", "omegaconf", "gymnasium", "mesa", "polars", "implicit", "openai", "rouge_score", "sacrebleu")
    program = (
        f"import sys; sys.path.insert(0, 'benchmarks')\nfor name in {absent}: sys.modules[name] = None\n"
        "import p5_gpu; print(len(p5_gpu.plan()))"
    )
    printed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(printed.stdout) > 30


def test_the_gpu_benchmark_runs_one_seed_of_everything_first(p5_gpu):
    jobs = p5_gpu.plan()
    assert len({p5_gpu.key_of(job) for job in jobs}) == len(jobs)
    seeds = [job["seed"] for job in jobs]
    assert seeds == sorted(seeds)
    assert {job["part"] for job in jobs if job["seed"] == 0} == set(p5_gpu.PARTS)
    assert (jobs[0]["part"], jobs[0]["dataset"]) == ("quality", "beauty")


def test_a_failed_job_stops_no_other_and_can_be_tried_again(
    p5_gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    jobs = [
        {"part": "quality", "dataset": "beauty", "model": "popularity", "label": label, "options": {}, "seed": 0}
        for label in ("first", "second")
    ]
    run = p5_gpu.Bench.run
    broken = {"first"}

    def fail(self, job):
        if job["label"] in broken:
            raise RuntimeError("out of memory\nand so on")
        return run(self, job)

    monkeypatch.setattr(p5_gpu, "plan", lambda: jobs)
    monkeypatch.setattr(p5_gpu.Bench, "run", fail)
    arguments = ["--tiny", "--out", str(tmp_path), "--parts", "quality"]
    assert p5_gpu.main(arguments) == 0
    assert "FAILED RuntimeError: out of memory" in capsys.readouterr().out
    assert "quality | beauty | first | seed 0: RuntimeError: out of memory" in (tmp_path / "table.md").read_text()
    assert "Traceback" in json.loads((tmp_path / "results.json").read_text())[p5_gpu.key_of(jobs[0])]["traceback"]
    broken.clear()
    assert p5_gpu.main(arguments) == 0
    assert "first" not in capsys.readouterr().out
    assert p5_gpu.main([*arguments, "--retry"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert all("error" not in row and row["filtered"]["hr@10"] > 0 for row in results.values())
    assert "Failed" not in (tmp_path / "table.md").read_text()


def test_training_ends_with_the_time_limit(p5_gpu, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    job = {"part": "quality", "dataset": "beauty", "model": "sasrec", "label": "long", "seed": 0,
           "options": {"training.max_minutes": 60.0}}  # fmt: skip
    monkeypatch.setattr(p5_gpu, "plan", lambda: [job])
    assert p5_gpu.main(["--tiny", "--out", str(tmp_path), "--parts", "quality", "--minutes", "0.0005"]) == 0
    printed = capsys.readouterr().out
    assert "long | seed 0: stopped at the time limit" in printed
    assert "1 jobs left" in printed
    assert not (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_decoding_finds_the_lists_of_generate(tmp_path: Path):
    bench("p5_decoding.py", "--items", 150, "--users", 8, "--batch", 4, "--out", tmp_path / "x.json")
    results = json.loads((tmp_path / "x.json").read_text())
    assert results["beam"]["same_lists"] == 1
    assert results["exact"]["users_per_s"] > 0
