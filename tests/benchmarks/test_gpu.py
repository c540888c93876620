"""The quarter of an hour of a GPU, rehearsed: the schedule in miniature on the CPU, its caps, and what travels."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from recommenders.evaluation.offline import rank_metrics, ranks
from simenv.datasets.splits import leave_one_out

ROOT = Path(__file__).parents[2]
# of this project's own dependencies, those that a lent machine does not have
ABSENT = (
    "altair", "gguf", "gymnasium", "hydra", "implicit", "mesa", "minari", "omegaconf", "openai", "platformdirs",
    "polars", "pooch", "rouge_score", "stable_baselines3",
)  # fmt: skip


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("gpu")


def test_the_whole_schedule_runs_without_what_the_machine_lacks(tmp_path: Path):
    program = (
        f"import sys\nfor name in {ABSENT}: sys.modules[name] = None\n"
        f"sys.path.insert(0, 'benchmarks'); import gpu\nsys.exit(gpu.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", program, "--tiny", "--device", "cpu"]
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [*command, "--out", tmp_path / "out"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["results.json", "table.md"]
    parts = json.loads((tmp_path / "out/results.json").read_text())["parts"]
    ended = {letter: row["ended"] for letter, row in parts.items()}
    assert list(parts) == list("abcdefgh")
    assert {ended[letter] for letter in "adfgh"} == {"complete"}, ended
    assert all(ended[letter].startswith("at its cap, with the weights of epoch") for letter in "bce"), ended
    written = (tmp_path / "out/table.md").read_text()
    assert all(f"| {name} |" in written for row in parts.values() for name, *_ in row["figures"])
    assert {"p5-fast", "p5-fast in bfloat16", "user language model in float16"} <= set(parts["a"]["checks"])
    assert parts["d"]["same_lists"] == {"exact": 1.0, "beam": 1.0}
    assert all(turn["step"] > turn["arithmetic floor"] > 0 for turn in parts["f"]["turns"])
    assert parts["h"]["figures"][0][1] == 1.0
    auc = {name: value for name, value, _ in parts["g"]["figures"] if "AUC" in name}
    assert auc["from scratch: matched AUC after"] == auc["the same with adapters: matched AUC before"]


def test_a_quality_part_ranks_as_the_offline_evaluation_does(gpu, tmp_path: Path):
    bench = gpu.Bench(tmp_path, None, "cpu", True)
    row = bench.play("b", 60.0)
    found = row["runs"]["p5-fast"]
    recommender = bench.kept["p5-fast on beauty"]
    split = leave_one_out(bench.dataset("beauty").interactions)
    places = rank_metrics(ranks(recommender, split))
    assert found["tested_users"] == len(split.users)
    for name, value in found["test"].items():
        assert value == pytest.approx(places[name].mean(), abs=1e-6)
    point = found["curve"][-1]
    assert point["hr@10"] == pytest.approx(found["test"]["hr@10"])
    assert point["validation_ndcg@10"] == recommender.progress.best_score


def test_what_runs_on_is_cut_off_and_what_fails_is_tried_again(gpu, tmp_path: Path, monkeypatch, capsys):
    caps = {}

    def endless(bench, row):
        caps["b"] = bench.left
        gpu.figure(row, "found early", 7.0, "something")
        while True:
            try:
                time.sleep(0.01)
            except Exception:  # a part may contain such a block; being cut off goes through it
                continue

    def broken(bench, row):
        caps["a"] = bench.left
        raise RuntimeError("out of memory\nand so on")

    def fine(bench, row):
        gpu.figure(row, "found late", 8.0)

    parts = {"a": gpu.Part("broken", 270.0, broken), "b": gpu.Part("endless", 180.0, endless)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    arguments = [
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path),
        "--minutes",
        "0.06",
        "--device",
        "cpu",
        "--parts",
        "ab",
    ]
    assert gpu.main(arguments) == 0
    assert caps == pytest.approx({"a": 270 * 0.06 / 9, "b": 180 * 0.06 / 9}, abs=0.1), (
        "nine minutes' caps, shrunk alike"
    )
    results = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert results["a"]["ended"] == "failed: RuntimeError: out of memory"
    assert "Traceback" in results["a"]["traceback"]
    assert results["b"]["ended"].startswith("cut off at its cap")
    assert results["b"]["seconds"] < 1.2 + 1
    assert "| found early | 7 | something |" in (tmp_path / "table.md").read_text()

    monkeypatch.setattr(gpu, "PARTS", {"a": gpu.Part("mended", 270.0, fine), "b": parts["b"]})
    caps.clear()
    assert gpu.main(arguments) == 0
    assert not caps, "what has not failed is not run again"
    table = (tmp_path / "table.md").read_text()
    assert table.index("(a) mended") < table.index("(b) endless")
    assert "failed" not in table
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x"], "--data: expected"),
        (["--tiny"], "--out None"),
        (["--tiny", "--out", "x", "--minutes", "0"], "--minutes 0.0"),
        (["--tiny", "--out", "x", "--parts", "az"], "--parts: unknown 'z'"),
    ],
)
def test_wrong_arguments_are_said(gpu, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_what_travels_comes_out_whole(gpu, tmp_path: Path, monkeypatch, capsys):
    weights = tmp_path / "whole.gguf"
    weights.write_bytes(bytes(range(256)) * 40 + b"odd")
    published = tmp_path / "data/amazon-x"
    published.mkdir(parents=True)
    (published / "X.txt").write_text("".join(f"{user} {user % 3 + 1} 4 5 6\n" for user in range(1, 9)))
    monkeypatch.setattr(gpu, "smollm2", lambda: weights)
    monkeypatch.setattr(gpu, "FOLDERS", {"beauty": ("amazon", "amazon-x")})
    packed = tmp_path / "packed"
    assert gpu.main(["--data", str(tmp_path / "data"), "--pack", str(packed)]) == 0
    assert capsys.readouterr().out.count("MiB") == 2
    dataset = gpu.Bench(tmp_path / "out", packed, "cpu", False).dataset("beauty")
    expected = gpu.datasets.load("amazon", root=str(published))
    assert dataset.catalog.titles == expected.catalog.titles
    np.testing.assert_array_equal(dataset.interactions.items, expected.interactions.items)
    pieces = [packed / "first/smollm2.gguf.0", packed / "second/smollm2.gguf.1"]
    assert b"".join(piece.read_bytes() for piece in pieces) == weights.read_bytes()
    names = [path.name for path in (packed / "second/packages").iterdir()]
    assert {"gguf", "pooch", "platformdirs"} <= set(names)
    assert any(name.startswith("gguf-") for name in names), "transformers asks for its version"
