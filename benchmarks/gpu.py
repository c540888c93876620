"""A quarter of an hour of one GPU: every figure that needs a card, the most telling first, each part within its cap.

    python benchmarks/gpu.py --data FOLDER --out DIR [--minutes 9] [--parts abcdefgh]
    python benchmarks/gpu.py --tiny --device cpu --out DIR          # the whole schedule in miniature
    python benchmarks/gpu.py --data FOLDER --pack DIR               # what has to travel to a lent machine

FOLDER holds `amazon-beauty-2014/`, `ml-1m-sequences/` and `ml-100k/`, or what `--pack` made of them. Training in a part
follows the clock: it ends shortly before the part's cap, with the weights that were best on validation items. What runs
on at its cap is cut off, keeps what it has found by then, and says so. With less than nine minutes all caps shrink
alike. After each part `results.json` and `table.md` are written; a part that stands there is not run again, unless it
failed. docs/gpu.md says what each figure is held against. Needs neither polars nor hydra, and no network.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import json
import pickle
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import p5_decoding

from agents.choice.model import ChoiceModel
from agents.sessions import open_sessions
from agents.sessions.tensors import TensorSessions
from recommenders.base import Recommender
from recommenders.evaluation.offline import rank_metrics
from recommenders.neural.sequential import BERT4Rec, GRU4Rec, SASRec
from recommenders.p5.generative import P5Fast
from recommenders.p5.language.batches import PromptBatches
from recommenders.p5.language.text import TextData
from recommenders.p5.prompted import P5
from simenv import datasets
from simenv.datasets.base import Dataset, Interactions
from simenv.datasets.splits import Split, leave_one_out
from simenv.envs.sessions import Who
from simenv.language_models.local.gguf_file import model_folder, smollm2
from simenv.numeric import mean_user_auc
from simenv.randomness import Key
from simenv.training.histories import Histories
from simenv.training.loop import VALIDATION_USERS, Training, TrainingOptions, autocast, held_out_ranks, pick_device

FOLDERS = {
    "beauty": ("amazon", "amazon-beauty-2014"),
    "ml-1m": ("amazon", "ml-1m-sequences"),
    "ml-100k": ("ml-100k", "ml-100k"),
}
CARRIED_PACKAGES = ("gguf", "pooch", "platformdirs")  # which read the packed weights; all pure Python
FULL_MINUTES = 9.0
ENDLESS = 100_000  # epochs: the clock ends training
GENERATE_ROWS = 64  # most users in a batch of generate, which asks Python at each beam and step

TINY_SECONDS = 2.0
CID_IID = {"name": "collaborative+independent", "options": {"window": 3}}
BY_THE_CLOCK = {"epochs": ENDLESS, "patience": ENDLESS, "early_stop": True}
BEAUTY_FAST = {
    "index": CID_IID,
    "network": {"embedding_size": 256, "layers": 4, "heads": 4, "depth_layers": 2, "dropout": 0.3, "history": 50},
    "training": {"batch_size": 512, "learning_rate": 2e-3, "evaluate_every": 4, **BY_THE_CLOCK},
}
BEAUTY_P5 = {
    "index": CID_IID,
    "network": {"embedding_size": 256, "layers": 4, "heads": 4, "dropout": 0.2},
    "training": {"batch_size": 1024, "learning_rate": 2e-3, "evaluate_every": 2, **BY_THE_CLOCK},
}
ML_1M_FAST = {
    "index": CID_IID,
    "network": {"embedding_size": 256, "layers": 4, "heads": 4, "depth_layers": 2, "dropout": 0.2, "history": 200},
    "training": {"batch_size": 128, "learning_rate": 2e-3, "evaluate_every": 1, **BY_THE_CLOCK},
}
ML_1M_SASREC = {
    "embedding_size": 128, "layers": 2, "heads": 2, "dropout": 0.2, "history": 200, "loss": "sampled_softmax",
    "training": {"batch_size": 128, "learning_rate": 1e-3, "evaluate_every": 2, **BY_THE_CLOCK},
}  # fmt: skip
TINY_NETWORK = {"embedding_size": 16, "layers": 1, "heads": 2, "history": 8}
TINY_TRAINING = {"batch_size": 64, "learning_rate": 1e-2, "epochs": 1, "evaluate_every": 1}
TINY_INDEX = {"name": "collaborative+independent", "options": {"window": 3, "clusters": 4, "leaf_size": 8}}


class OutOfTime(BaseException):
    """A part ran on at its cap; not an Exception, so that nothing on the way takes it for its own."""


@contextmanager
def cut_off_after(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the block when it has run for so long."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Bench:
    """The device, the data, the clock, and what has been found."""

    def __init__(self, out: Path, data: Path | None, device: str, tiny: bool) -> None:
        self.out, self.data, self.tiny, self.device = out, data, tiny, pick_device(device)
        self.on_card = self.device.type == "cuda"
        self.ends = 0.0  # of the part's cap, on the clock of time.perf_counter
        self.kept: dict[str, Any] = {}  # recommenders that later parts go on with
        self.sets: dict[str, Dataset] = {}
        self.unpacking: subprocess.Popen[str] | None = None
        out.mkdir(parents=True, exist_ok=True)
        self.file = out / "results.json"
        self.results: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {"parts": {}}
        self.results |= {
            "device": self.name,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "command": " ".join(sys.argv),
        }  # fmt: skip

    @property
    def name(self) -> str:
        """The device, in words."""
        return torch.cuda.get_device_name(self.device) if self.on_card else f"CPU, {torch.get_num_threads()} threads"

    # -- time ------------------------------------------------------------------------------------------------------

    @property
    def left(self) -> float:
        """Seconds to the part's cap; with `--tiny` to a nearer end, as what follows the clock would fill any cap."""
        return self.ends - time.perf_counter()

    def play(self, letter: str, cap: float) -> dict[str, Any]:
        """Run one part and return what it found, however it ended."""
        part, started, cpu = PARTS[letter], time.perf_counter(), time.process_time()
        self.ends = started + (min(cap, TINY_SECONDS) if self.tiny else cap)
        row: dict[str, Any] = {"part": part.title, "cap_s": round(cap, 1), "figures": []}
        try:
            with cut_off_after(cap):
                part.run(self, row)
            row.setdefault("ended", "complete")
        except OutOfTime:
            row["ended"] = "cut off at its cap; the figures are those found by then"
        except Exception as error:  # whatever it is, the other parts are worth their time on the card
            row["ended"] = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            row["traceback"] = traceback.format_exc()
        row["seconds"] = round(time.perf_counter() - started, 1)
        row["cpu_seconds"] = round(time.process_time() - cpu, 1)
        if self.on_card:
            row["peak_memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
            torch.cuda.reset_peak_memory_stats(self.device)
            torch.cuda.empty_cache()
        return row

    def keep(self, letter: str, row: dict[str, Any]) -> None:
        """Add a part to the results and write both files."""
        self.results["parts"][letter] = row
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.results, indent=1))
        partial.replace(self.file)
        (self.out / "table.md").write_text(table(self.results))

    def is_done(self, letter: str) -> bool:
        """Whether a part has been run and has not failed."""
        row = self.results["parts"].get(letter)
        return row is not None and not row["ended"].startswith("failed")

    # -- data ------------------------------------------------------------------------------------------------------

    def dataset(self, name: str) -> Dataset:
        """A data set, packed or as published; a small synthetic one with `--tiny`."""
        if name not in self.sets:
            self.sets[name] = self._load(name)
        return self.sets[name]

    def _load(self, name: str) -> Dataset:
        if self.tiny:
            return datasets.load("synthetic", n_users=40, n_items=60, mean_activity=12, seed=0)
        assert self.data is not None
        packed = next(self.data.rglob(f"{name}.pickle.gz"), None)
        if packed is not None:
            with gzip.open(packed) as file:
                return pickle.load(file)
        loader, folder = FOLDERS[name]
        return datasets.load(loader, root=str(self.data / folder))

    def begin_unpacking(self) -> None:
        """Unpack the weights that travelled in pieces, in a process beside the first parts."""
        assert self.data is not None
        pieces = sorted(self.data.rglob("smollm2.gguf.*"))
        if len(pieces) < 2:  # none, or the first transfer is lost; part g says so
            return
        packages = next(self.data.rglob("packages"))
        whole = Path(tempfile.mkdtemp()) / "SmolLM2-135M-Instruct.Q4_1.gguf"
        whole.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
        program = (
            f"import sys; sys.path[:0] = {[str(ROOT), str(packages)]}\n"
            "from simenv.language_models.local.gguf_file import unpacked; from pathlib import Path\n"
            f"print(unpacked(Path({str(whole)!r})))"
        )
        self.unpacking = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)

    def smollm2(self) -> Path:
        """The folder of SmolLM2-135M-Instruct: carried here, or of the installed package."""
        if self.unpacking is None:
            return model_folder("smollm2")
        printed, _ = self.unpacking.communicate()
        if self.unpacking.returncode:
            raise RuntimeError("the carried weights could not be unpacked; see the output")
        return Path(printed.strip())

    # -- the card --------------------------------------------------------------------------------------------------

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_card:
            torch.cuda.synchronize(self.device)

    def seconds_of(self, work: Callable[[], object], repeats: int) -> float:
        """Mean seconds of `work`, after one call that is not counted."""
        work()
        self.synchronize()
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        self.synchronize()
        return (time.perf_counter() - started) / repeats

    def ceilings(self) -> dict[str, float]:
        """What this device reaches: FLOP/s of a large product, in the precision of training, and bytes/s of a copy."""
        if "ceilings" not in self.results:
            n, copied = (8192, 2**31) if self.on_card else (1024, 2**26)
            dtype = torch.bfloat16 if self.on_card else torch.float32
            a, b = (torch.randn(n, n, device=self.device, dtype=dtype) for _ in range(2))
            source = torch.randn(copied // 4, device=self.device)
            target = torch.empty_like(source)
            self.results["ceilings"] = {
                "flops": 2 * n**3 / self.seconds_of(lambda: a @ b, 10),
                "bytes_a_second": 2 * copied / self.seconds_of(lambda: target.copy_(source), 10),  # read and written
            }
        return self.results["ceilings"]


def flops_of(work: Callable[[], object]) -> float:
    """Floating-point operations of products and attention in one call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def figure(row: dict[str, Any], name: str, value: float | str, against: str = "") -> None:
    """Note a figure, and what it is held against."""
    row["figures"].append([name, value, against])


# -- (a) smoke ----------------------------------------------------------------------------------------------------


def smoke(bench: Bench, row: dict[str, Any]) -> None:
    """Every network trains a pass here and scores as the same weights do on the CPU; every dtype is near that."""
    checks: dict[str, Any] = {}
    row["checks"] = checks
    ceilings = bench.ceilings()
    figure(row, "a large product (bfloat16 on a card), TFLOP/s", ceilings["flops"] / 1e12, "data sheet of an H200: 989")
    figure(row, "copy, GB/s read and written", ceilings["bytes_a_second"] / 1e9, "data sheet of an H200: 4,800")
    for name, check, tolerance in checked(bench):
        started = time.perf_counter()
        try:
            apart: float | str = check()
            passed = apart <= tolerance  # NaN does not
        except Exception as error:
            apart, passed = f"{type(error).__name__}: {error}", False
        seconds = round(time.perf_counter() - started, 2)
        checks[name] = {"apart": apart, "tolerance": tolerance, "passed": passed, "seconds": seconds}
    wrong = [name for name, found in checks.items() if not found["passed"]]
    figure(row, "checks passed", f"{len(checks) - len(wrong)} of {len(checks)}", "the same weights on the CPU")
    if wrong:
        row["ended"] = f"complete, but wrong: {', '.join(wrong)}"


def checked(bench: Bench) -> list[tuple[str, Callable[[], float], float]]:
    """Name, relative distance from the reference, and the most it may be."""
    world = datasets.load("synthetic", n_users=40, n_items=60, mean_activity=12, seed=0)
    users = np.arange(world.n_users)
    train = {**TINY_TRAINING, "batch_size": 16, "early_stop": True}
    small = {"embedding_size": 16, "layers": 1}
    fast = {"index": TINY_INDEX, "network": {**small, "heads": 2, "history": 8}, "training": train}
    prompted = {"index": TINY_INDEX, "asking": {"history": 4}, "training": {**train, "batch_size": 64}}
    plain = {**small, "history": 8, "training": train}
    rqvae = {"codewords": 8, "steps": 50, "device": str(bench.device)}
    fitted: dict[str, Any] = {}

    def scores_as_on_the_cpu(kind: Any, options: dict[str, Any]) -> float:
        recommender, twin = kind(**options, device=str(bench.device)), kind(**options, device="cpu")
        for one in (recommender, twin):
            bind(one, world)
        recommender.fit(world.interactions, key=Key(0))
        fitted.setdefault(kind.name, recommender)
        with tempfile.TemporaryDirectory() as folder:
            recommender.save(Path(folder))
            twin.load(Path(folder))
        return apart(recommender.scores(users), twin.scores(users))

    def in_bfloat16(name: str) -> float:
        recommender = fitted[name]
        with torch.autocast(bench.device.type, dtype=torch.bfloat16):
            return apart(recommender.scores(users), _float32(recommender, users))

    def beam_finds_the_best() -> float:
        recommender = fitted["p5-fast"]
        best = np.argsort(-recommender.scores(users), axis=1, kind="stable")[:, :5]
        return float((recommender.beam(users, 5) != best).mean())

    networks: list[tuple[str, Any, dict[str, Any]]] = [
        ("p5-fast", P5Fast, fast),
        ("p5-fast, RQ-VAE codes", P5Fast, {**fast, "index": {"name": "rqvae", "options": rqvae}}),
        ("p5, T5", P5, {**prompted, "network": {**small, "heads": 2}}),
        ("p5, T5, items as tokens", P5, {**prompted, "network": {**small, "heads": 2, "item_input": "tokens"}}),
        ("p5, decoder-only", P5, {**prompted, "network": {**small, "heads": 2, "backbone": "llama"}}),
        ("sasrec", SASRec, plain),
        ("sasrec, sampled softmax", SASRec, {**plain, "loss": "sampled_softmax", "negatives": 8}),
        ("gru4rec", GRU4Rec, plain),
        ("bert4rec", BERT4Rec, plain),
    ]  # fmt: skip
    found: list[tuple[str, Callable[[], float], float]] = [
        (name, lambda kind=kind, options=options: scores_as_on_the_cpu(kind, options), 1e-3)
        for name, kind, options in networks
    ]
    found += [
        (f"{name} in bfloat16", lambda name=name: in_bfloat16(name), 3e-2) for name in ("p5-fast", "p5", "sasrec")
    ]
    found.append(("p5-fast, beam against exact", beam_finds_the_best, 0.01))
    found += [
        (f"user language model in {dtype}", lambda dtype=dtype: user_lm_as_on_the_cpu(bench, world, dtype), tolerance)
        for dtype, tolerance in (("float32", 1e-3), ("bfloat16", 5e-2), ("float16", 2e-2))
    ]
    if bench.on_card:  # on a CPU it needs a compiler and half a minute
        compiled = {**fast, "training": {**train, "compile": True}}
        found.append(("p5-fast, compiled", lambda: scores_as_on_the_cpu(P5Fast, compiled), 1e-3))
    return found


def bind(recommender: Recommender, dataset: Dataset) -> None:
    """Show the data set's texts to those that read them."""
    if isinstance(recommender, P5 | P5Fast):
        recommender.bind_dataset(dataset)


def _float32(recommender: Any, users: np.ndarray) -> np.ndarray:
    with torch.autocast(recommender.device.type, enabled=False):
        return recommender.scores(users)


def apart(found: np.ndarray, reference: np.ndarray) -> float:
    """Norm of the difference over the norm of the reference."""
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


def user_lm_as_on_the_cpu(bench: Bench, world: Dataset, dtype: str) -> float:
    """A small user language model's interest in some pages, on the device in this dtype."""
    from agents.user_lm import Corpus
    from agents.user_lm.batches import Reader, answer_texts
    from agents.user_lm.network import Objective, interests, new_network
    from agents.user_lm.vocabulary import learn_vocabulary

    if "user language model" not in bench.kept:
        corpus = Corpus(world, moments=1, candidates=6)
        examples = list(corpus.examples(0))[:8]
        system = corpus.prompts.render("system")
        texts = (each.person + each.page for each in examples)
        tokenizer = learn_vocabulary(texts, size=600, system=system, answers=answer_texts(20), max_length=2048)
        torch.manual_seed(0)
        network = new_network(tokenizer, hidden_size=16, layers=2, heads=1, dropout=0.0, max_length=2048)
        bench.kept["user language model"] = network, Reader(tokenizer, system), examples
    network, reader, examples = bench.kept["user language model"]

    def read(device: Any, precision: torch.dtype) -> np.ndarray:
        network.to(device, torch.float32)
        objective = Objective(network, reader, language=0.0)
        with torch.autocast(torch.device(device).type, dtype=precision, enabled=precision != torch.float32):
            return np.concatenate(interests(objective, reader, examples, tokens=20_000))

    return apart(read(bench.device, getattr(torch, dtype)), read("cpu", torch.float32))


# -- (b), (c), (e) quality ----------------------------------------------------------------------------------------


def watched(kind: Any, bench: Bench, split: Split, curve: list[dict[str, float]], ends: float) -> Any:
    """A recommender that trains till shortly before `ends`, and whose test hits are noted whenever it validates.

    How long the ranking at the end will take is measured on the untrained network. Which weights are kept is decided by
    the validation items alone.
    """
    began = time.perf_counter()
    histories = Histories.from_log(split.train)
    tested = sample(bench, split)
    watching = 0.0

    class Watched(kind):
        def _build(self, seed: int) -> None:
            super()._build(seed)
            a_user = bench.seconds_of(self.ranked, 1) / len(tested)
            after = 1.3 * a_user * (min(VALIDATION_USERS, histories.n_users) + 2 * len(tested))  # at the end
            rest = ends - time.perf_counter()
            self.training = replace(self.training, max_minutes=max(rest - after, 0.3 * rest, 0.1) / 60)

        def ranked(self) -> np.ndarray:
            return held_out_ranks(self.item_scores, histories, split.users[tested], split.targets[tested])

        def validate(self, *held_out: Any) -> float:
            nonlocal watching
            score = super().validate(*held_out)
            started = time.perf_counter()
            with autocast(bench.device):
                places = self.ranked()
            watching += time.perf_counter() - started
            point = {"seconds": time.perf_counter() - began, "of_it_watching": watching, "validation_ndcg@10": score}
            curve.append(point | means(places))
            return score

    return Watched


def sample(bench: Bench, split: Split) -> np.ndarray:
    """Rows of a split that are tested: all on a card; on a CPU, where that takes minutes, some."""
    n = len(split.users)
    return np.arange(n) if bench.on_card else np.sort(np.random.default_rng(0).permutation(n)[:500])


def means(places: np.ndarray) -> dict[str, float]:
    """Hit rate and NDCG at 5 and 10."""
    return {name: float(x.mean()) for name, x in rank_metrics(places, (5, 10)).items() if not name.startswith("mrr")}


def quality(bench: Bench, row: dict[str, Any], kind: Any, data: str, options: dict[str, Any], against: str,
            share: float = 1.0) -> None:  # fmt: skip
    """Train by the clock for this share of what is left of the part, and rank the test items of all users."""
    dataset = bench.dataset(data)
    split = leave_one_out(dataset.interactions)
    began = time.perf_counter()
    curve: list[dict[str, float]] = []
    own: dict[str, Any] = {"data": data, "options": options, "curve": curve}
    row.setdefault("runs", {})[kind.name] = own
    recommender = watched(kind, bench, split, curve, began + share * bench.left)(**options, device=str(bench.device))
    bind(recommender, dataset)
    try:
        recommender.fit(split.train, key=Key(0))
    except OutOfTime:
        if curve:
            best = max(curve, key=lambda point: point["validation_ndcg@10"])
            value = f"{best['hr@10']:.4f} / {best['ndcg@10']:.4f}"
            figure(row, f"{kind.name} on {data}, cut off: HR@10 / NDCG@10 where validation was best", value, against)
        raise
    progress, tested = recommender.progress, sample(bench, split)
    trained = time.perf_counter() - began
    found = means(recommender.ranked())
    own |= {
        "test": found, "tested_users": len(tested), "epochs": progress.epoch, "best_epoch": progress.best_epoch,
        "samples": progress.samples, "training_s": progress.seconds, "wall_s": trained, "losses": progress.losses[-20:],
        "parameters": sum(p.numel() for p in recommender.network.parameters()),
    }  # fmt: skip
    figure(row, f"{kind.name} on {data}: HR@10 / NDCG@10", f"{found['hr@10']:.4f} / {found['ndcg@10']:.4f}", against)
    figure(row, f"{kind.name}: seconds in all; epochs, of them till the best",
           f"{trained:.1f}; {progress.epoch}, {progress.best_epoch}")  # fmt: skip
    row["ended"] = f"at its cap, with the weights of epoch {progress.best_epoch} of {progress.epoch}"
    bench.kept[f"{kind.name} on {data}"] = recommender


def tiny_options(bench: Bench, options: dict[str, Any]) -> dict[str, Any]:
    """The options themselves, or those of a network for `--tiny`."""
    if not bench.tiny:
        return options
    if "network" not in options:
        return {**options, **TINY_NETWORK, "training": {**options["training"], **TINY_TRAINING}}
    network = {name: value for name, value in TINY_NETWORK.items() if name in options["network"]}
    training = {**options["training"], **TINY_TRAINING}
    return {**options, "index": TINY_INDEX, "network": {**options["network"], **network}, "training": training}


def beauty_fast(bench: Bench, row: dict[str, Any]) -> None:
    """p5-fast on Beauty, collaborative and independent codes."""
    quality(bench, row, P5Fast, "beauty", tiny_options(bench, BEAUTY_FAST),
            "P5 CID+IID .0732 / .0427; SASRec + sampled softmax (learns validation items) .0921 / .0531")  # fmt: skip
    curve = row["runs"][P5Fast.name]["curve"]
    reached = next((point["seconds"] for point in curve if point["hr@10"] >= 0.0732), "not reached")
    figure(
        row,
        "p5-fast: seconds to HR@10 .0732, index and watching included",
        reached,
        "TIGER 4,341, SASRec 2,455 (cornac)",
    )


def beauty_p5(bench: Bench, row: dict[str, Any]) -> None:
    """p5 with personalised prompts on Beauty."""
    quality(bench, row, P5, "beauty", tiny_options(bench, BEAUTY_P5), "P5 CID+IID .0732 / .0427; P5-B .0664 / .0429")


def ml_1m(bench: Bench, row: dict[str, Any]) -> None:
    """p5-fast and SASRec with a sampled softmax on ML-1M."""
    quality(bench, row, P5Fast, "ml-1m", tiny_options(bench, ML_1M_FAST),
            "FuXi .3164 / .1813; P5 collaborative (OpenP5, 10 epochs) .2485 / .1359", 0.5)  # fmt: skip
    quality(bench, row, SASRec, "ml-1m", tiny_options(bench, ML_1M_SASREC),
            "SASRec + sampled softmax .2929 / .1684; eSASRec .3133 / .1772; SASRec BCE .2392 / .1259")  # fmt: skip


# -- (d) decoding -------------------------------------------------------------------------------------------------


def decoding(bench: Bench, row: dict[str, Any]) -> None:
    """Users a second by beam, by exact ranking and by generate with its prefix function, from the same weights."""
    n_items, n_users, beams, k = (60, 64, 10, 5) if bench.tiny else (12_101, 2048, 20, 10)
    shape = {"embedding_size": 16, "layers": 1, "heads": 2} if bench.tiny else BEAUTY_P5["network"]
    recommender = p5_decoding.untrained(
        p5_decoding.random_log(n_users, n_items), device=str(bench.device), network=shape,
        index={"name": "collaborative", "options": {} if bench.tiny else {"window": 3}},
    )  # fmt: skip
    ways: dict[str, tuple[p5_decoding.Decode, list[int]]] = {
        "generate": (p5_decoding.by_generate, [1, 16, GENERATE_ROWS])
    }
    ways["exact"] = (p5_decoding.by_exact, [1, 16, 512])
    ways["beam"] = (p5_decoding.by_beam, [1, 16, 512, 2048])
    ways = {name: (decode, [n for n in sizes if n <= n_users]) for name, (decode, sizes) in ways.items()}
    users = np.arange(n_users)
    row |= {"items": n_items, "beams": beams, "internal_nodes": recommender.trie.n_nodes, "users_per_s": {}}
    row["same_lists"] = same = {}
    turns, peak = sum(len(sizes) for _, sizes in ways.values()), bench.ceilings()["flops"]
    slow, expected = 0.0, np.zeros(0)
    for name, (decode, sizes) in ways.items():
        lists = decode(recommender, users[:16], k, beams)
        speeds: dict[int, float] = {}
        row["users_per_s"][name] = speeds
        for size in sizes:
            speeds[size] = rate(
                bench, partial(decode, recommender, users[:size], k, beams), size, 0.8 * bench.left / turns
            )
            turns -= 1
        best = max(speeds, key=speeds.__getitem__)
        value = f"{speeds[1]:,.1f}; {speeds[best]:,.0f} at {best}"
        if name == "generate":
            slow, expected = speeds[best], lists
            figure(row, "generate: users/s at batch 1; best batch", value, "of NVIDIA SID-GR: one fiftieth of its own")
            continue
        same[name] = float((lists == expected).all(axis=1).mean())
        flops = flops_of(partial(decode, recommender, users[: sizes[-1]], k, beams)) / sizes[-1]
        said = f"{speeds[best] / slow:.1f} times generate at its best; arithmetic at the peak: {peak / flops:,.0f}"
        figure(row, f"{name}: users/s at batch 1; best batch", value, said)
        figure(row, f"{name}: share of 16 users with generate's list", same[name], "1")


def rate(bench: Bench, work: Callable[[], object], size: int, seconds: float) -> float:
    """Users a second of `work` on `size` of them, for about so long; one call that is not counted comes first."""
    work()
    bench.synchronize()
    started, n = time.perf_counter(), 0
    while n == 0 or time.perf_counter() - started < seconds / 2:
        work()
        n += 1
    bench.synchronize()
    return n * size / (time.perf_counter() - started)


# -- (f) training speed -------------------------------------------------------------------------------------------


def training_speed(bench: Bench, row: dict[str, Any]) -> None:
    """Targets a second of both networks, at the batch they train with and at four times that, and what bounds them."""
    ceilings = bench.ceilings()
    figure(
        row, "measured here: TFLOP/s; GB/s", f"{ceilings['flops'] / 1e12:.3g}; {ceilings['bytes_a_second'] / 1e9:.4g}"
    )
    train = leave_one_out(bench.dataset("beauty").interactions).train
    histories = Histories.from_log(train)
    recommenders = [on_beauty(bench, kind, train) for kind in (P5Fast, P5)]
    turns = [(recommender, factor) for recommender in recommenders for factor in (1, 4)]
    row["turns"] = []
    steps: dict[str, Callable[[], None]] = {}
    for number, (recommender, factor) in enumerate(turns):
        rows, share = factor * recommender.training.batch_size, max(bench.left / (len(turns) - number), 0.2)
        found, steps[recommender.name] = speed(bench, recommender, histories, rows, 0.6 * share)
        row["turns"].append({"network": recommender.name, "rows": rows, **found})
        said = "; ".join(f"{name} {found[name]:.3f} ms" for name in ("step", "arithmetic floor", "memory floor"))
        figure(row, f"{recommender.name}, batches of {rows} rows: targets/s", found["targets_per_s"], said)
        figure(row, f"{recommender.name}, batches of {rows} rows: share of the measured peak", found["share_of_peak"],
               f"bound: {found['bound']}, and what the host adds")  # fmt: skip
    for recommender in recommenders if bench.on_card else ():
        busy, kernels = card_busy(bench, steps[recommender.name])
        row[f"busy {recommender.name}"] = {"share": busy, "kernels": kernels}
        figure(row, f"{recommender.name}: share of a step, of {kernels} kernels, in which the card computes", busy,
               "1; far below it the host, which starts the kernels, is what bounds")  # fmt: skip


def on_beauty(bench: Bench, kind: Any, train: Interactions) -> Any:
    """The recommender of the earlier part, or a new one that has hardly trained."""
    key = f"{kind.name} on beauty"
    if key not in bench.kept:
        options = tiny_options(bench, BEAUTY_FAST if kind is P5Fast else BEAUTY_P5)
        short = {**options["training"], "early_stop": False, "max_minutes": 1e-9}
        bench.kept[key] = kind(**{**options, "training": short}, device=str(bench.device))
        bench.kept[key].bind_dataset(bench.dataset("beauty"))
        bench.kept[key].fit(train, key=Key(0))
    return bench.kept[key]


def speed(
    bench: Bench, recommender: Any, histories: Histories, rows: int, seconds: float
) -> tuple[dict[str, Any], Callable[[], None]]:
    """Figures of the training loop on a few real batches, for so long, with the floors of a step; and such a step."""
    batches = some_batches(recommender, histories, rows)

    def loss(batch: Any) -> tuple[Tensor, int]:
        parts = [torch.as_tensor(part).to(bench.device, non_blocking=True) for part in batch]
        if isinstance(recommender, P5):
            return recommender.network.loss(*parts, recommender.trie)
        return recommender.network.loss(parts[0], recommender.trie), int((batch[0] >= 0).sum())

    def trained(minutes: float) -> Any:
        how = TrainingOptions(epochs=ENDLESS, learning_rate=1e-6, max_minutes=minutes)
        return Training(recommender.network, loss, how).run(lambda epoch: cycle(batches), ENDLESS)

    def step(batch: Any) -> None:
        with autocast(bench.device):
            value, _ = loss(batch)
        torch.autograd.backward(value)

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size() / len(batches)
        return tensor

    trained(0.1 * seconds / 60)  # not counted: memory is found, kernels are loaded
    progress, saved = trained(seconds / 60), 0.0
    recommender.network.train()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        flops = flops_of(lambda: [step(batch) for batch in batches]) / len(batches)
    recommender.network.zero_grad(set_to_none=True)
    n_weights = sum(p.numel() for p in recommender.network.parameters())
    step_s = progress.seconds / progress.step
    arithmetic_s = flops / bench.ceilings()["flops"]
    # what is kept for the way back is written and read; Adam reads 16 bytes a weight and writes 12
    memory_s = (2 * saved + 28 * n_weights) / bench.ceilings()["bytes_a_second"]
    return {
        "targets_per_s": progress.samples / progress.seconds, "parameters": n_weights, "flops_a_step": flops,
        "step": 1e3 * step_s, "arithmetic floor": 1e3 * arithmetic_s, "memory floor": 1e3 * memory_s,
        "share_of_peak": arithmetic_s / step_s, "bound": "arithmetic" if arithmetic_s > memory_s else "memory",
    }, lambda: step(batches[0])  # fmt: skip


def some_batches(recommender: Any, histories: Histories, batch_size: int) -> list[tuple[np.ndarray, ...]]:
    """The first batches of a pass, made beforehand."""
    rng = np.random.default_rng(0)
    if isinstance(recommender, P5):
        data = TextData(histories, recommender.vocabulary, recommender.catalog, recommender.history, None)
        stream: Any = PromptBatches(data, recommender.book, batch_size, 0.0).epoch(rng)
    else:
        stream = ((rows,) for rows in histories.batches(recommender.history, batch_size, rng))
    return [batch for batch, _ in zip(stream, range(4), strict=False)]


def card_busy(bench: Bench, step: Callable[[], None]) -> tuple[float, int]:
    """Share of a step in which the card computes, and how many kernels it starts; zeros on a CPU."""
    if not bench.on_card:
        return 0.0, 0
    from torch.profiler import ProfilerActivity, profile

    plain = bench.seconds_of(step, 3)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        bench.synchronize()
    events = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    return sum(event.self_device_time_total for event in events) / 1e6 / plain, sum(event.count for event in events)


# -- (g) user language models -------------------------------------------------------------------------------------


def user_language_models(bench: Bench, row: dict[str, Any]) -> None:
    """A user language model from scratch, then adapters on SmolLM2: pages/s, and matched AUC before and after."""
    from agents.user_lm import Corpus, HeldOut

    dataset = bench.dataset("ml-100k")
    held = HeldOut.draw(dataset, users=0.2, items=0.1, share=0.1, seed=0)
    defaults = yaml.safe_load((ROOT / "conf/experiment/train_user_lm.yaml").read_text())["user_lm"]
    how = {"candidates": 4, "moments": 1} if bench.tiny else {"ratios": defaults["ratios"], "moments": 3}
    corpus = Corpus(held.training_part(dataset), **how, seed=0)
    pages = Corpus(dataset, moments=2, candidates=4 if bench.tiny else 20, seed=1).examples(0)
    unseen = [page for page in pages if held.users[page.user]]
    row |= {"training_users": int((~held.users).sum()), "judged_pages": len(unseen)}
    small = {"passes": 1, "vocabulary": 600, "hidden_size": 16, "layers": 2, "heads": 1, "batch_tokens": 4_000}
    large = {"passes": ENDLESS, "batch_tokens": 32_768}
    options = {**defaults, **(small if bench.tiny else large), "device": str(bench.device)}
    cap = bench.left
    with tempfile.TemporaryDirectory() as temporary:
        scratch, adapted = Path(temporary) / "scratch", Path(temporary) / "adapted"
        trained_lm(bench, row, "from scratch", corpus, unseen, {**options, "max_minutes": 0.18 * cap / 60}, scratch)
        name = "the same with adapters" if bench.tiny else "SmolLM2 with adapters"
        options |= {"checkpoint": str(scratch if bench.tiny else bench.smollm2()), "lora_rank": 8}
        options |= {"learning_rate": 5e-4, "batch_tokens": options["batch_tokens"] // 2, "max_minutes": 0.4 * cap / 60}
        auc_before(bench, row, name, corpus, unseen, options)
        trained_lm(bench, row, name, corpus, unseen, options, adapted)


def auc_before(bench: Bench, row: dict[str, Any], name: str, corpus: Any, unseen: Any, options: dict[str, Any]) -> None:
    """Matched AUC of a checkpoint as it is."""
    from agents.user_lm.batches import Reader
    from agents.user_lm.network import Objective, interests, load_network

    tokenizer, network = load_network(options["checkpoint"])
    reader = Reader(tokenizer, corpus.prompts.render("system"))
    objective = Objective(network.to(bench.device), reader, language=0.0)
    with autocast(bench.device):
        opinions = interests(objective, reader, unseen, tokens=options["batch_tokens"])
    figure(row, f"{name}: matched AUC before", matched_auc(unseen, opinions), ".5 = chance")


def trained_lm(
    bench: Bench, row: dict[str, Any], name: str, corpus: Any, unseen: Any, options: dict[str, Any], folder: Path
) -> None:
    """Train as `train_user_lm` does; pages a second trained and read, and matched AUC on users never seen."""
    from agents.user_lm.batches import digits_wanted
    from agents.user_lm.train import LearningOptions, train

    def judged(opinions: Callable[[Any], Any]) -> dict[str, Any]:
        with autocast(bench.device):
            started = time.perf_counter()
            found = opinions(unseen)
            seconds = time.perf_counter() - started
        return {"pages_read_per_s": len(unseen) / seconds, "matched_auc": matched_auc(unseen, found)}

    names = {each.name for each in fields(LearningOptions)}
    learning = LearningOptions(**{key: value for key, value in options.items() if key in names})
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / "training.pt"
        found = train(corpus, learning, folder, checkpoint=checkpoint, judged=judged, seed=0, show=False)
    answers = np.mean([(digits_wanted(page).sum(axis=1) > 0).sum() for page in islice(corpus.examples(0), 200)])
    figures = found.figures | {"pages_trained_per_s": found.figures["answers_a_second"] / answers}
    row.setdefault("models", {})[name] = figures | {"losses": found.losses, "options": options}
    tokens = figures["prompt_tokens"]
    flops = 6 * figures["parameters"] * tokens  # adapters: 4, but the branches of the answer come on top
    bound = bench.ceilings()["flops"] / flops
    figure(
        row,
        f"{name}: pages/s trained",
        figures["pages_trained_per_s"],
        f"6 x weights x prompt at the peak: {bound:,.0f}",
    )
    figure(
        row, f"{name}: pages/s read", figures["pages_read_per_s"], f"2 x weights x prompt at the peak: {3 * bound:,.0f}"
    )
    figure(row, f"{name}: matched AUC after", figures["matched_auc"], "of held-out users; .5 = chance")


def matched_auc(pages: Any, opinions: Any) -> float:
    """How often a picked item stands above one as popular that was not, mean of pages."""
    chosen = np.concatenate([own[page.picked] for page, own in zip(pages, opinions, strict=True)])
    other = np.concatenate([own[~page.picked] for page, own in zip(pages, opinions, strict=True)])
    return mean_user_auc(np.repeat(np.arange(len(pages)), [page.picked.sum() for page in pages]), chosen, other)


# -- (h) the choice rule ------------------------------------------------------------------------------------------


def choice_rule(bench: Bench, row: dict[str, Any]) -> None:
    """User-steps a second of the choice rule on the device, slates given or of a policy that stays there too."""
    n_items, k = (60, 5) if bench.tiny else (1000, 10)
    world = datasets.load("synthetic", n_users=40 if bench.tiny else 2000, n_items=n_items, seed=0)
    users, rng = ChoiceModel(), np.random.default_rng(0)
    assert world.tastes is not None
    users.bind(world, world.tastes, seed=0)

    def opened(size: int) -> TensorSessions:
        sessions = TensorSessions(users, np.arange(size), device=bench.device)
        sessions.begin(torch.ones(size, dtype=torch.bool, device=bench.device))
        return sessions

    most = 64 if bench.tiny else 65_536 if bench.on_card else 4096
    kernel, given = open_sessions(users, most, slate_size=k), rng.integers(0, n_items, (most, k))
    kernel.who[:, Who.SEED] = np.arange(most)
    kernel.begin(np.ones(most, np.bool_))
    observation = kernel.blank()
    kernel.play(given, out=observation)
    shown = torch.from_numpy(given).to(bench.device)
    same = (opened(most).play(shown).clicked.cpu().numpy() == kernel.clicked).mean()
    figure(row, f"share of {most * k:,} slots answered as by the kernel on the CPU", float(same), "1")
    on_cpu = rate(bench, lambda: kernel.play(given, out=observation), most, 0.15 * bench.left)
    features = 2 * users.population.vectors.shape[1] + world.catalog.n_genres
    floor = bench.ceilings()["bytes_a_second"] / (4 * k * features)  # vectors and genres of what is shown, once
    said = f"kernel on a CPU, {most:,} rows: {on_cpu:,.0f}; rows of the items read at the copy's speed: {floor:,.0f}"
    for size in dict.fromkeys((min(1024, most), most)):
        found = rate(bench, partial(opened(size).play, shown[:size]), size, 0.2 * bench.left)
        figure(row, f"{size:,} sessions, slates given: user-steps/s", found, said)
    sessions, weights = opened(most), torch.randn(world.catalog.n_genres, n_items, device=bench.device)

    def step() -> None:
        """Linear in the genres consumed; users who leave make room for others."""
        scores = (sessions.genre_counts @ weights).masked_fill_(~sessions.allowed(), -torch.inf)
        sessions.begin(sessions.play(scores.topk(k, dim=1).indices).left)

    found = rate(bench, step, most, 0.4 * bench.left)
    figure(row, f"{most:,} sessions, a linear policy, arrivals: user-steps/s", found, "the same with slates given")


# -- the schedule -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of the schedule, and the seconds it may take of nine minutes."""

    title: str
    seconds: float
    run: Callable[[Bench, dict[str, Any]], None]


PARTS = {
    "a": Part("smoke of every network and dtype", 30, smoke),
    "b": Part("p5-fast on Beauty, CID+IID", 100, beauty_fast),
    "c": Part("p5 (T5, personalised prompts) on Beauty", 120, beauty_p5),
    "d": Part("decoding against generate", 45, decoding),
    "e": Part("p5-fast and SASRec, sampled softmax, on ML-1M", 100, ml_1m),
    "f": Part("training speed and its bound", 30, training_speed),
    "g": Part("user language models on ML-100K", 90, user_language_models),
    "h": Part("the choice rule, 65,536 sessions", 20, choice_rule),
}


def table(results: dict[str, Any]) -> str:
    """All figures as Markdown."""
    lines = [f"{results['device']}, torch {results['torch']}: `{results['command']}`"]
    for letter, row in sorted(results["parts"].items()):
        lines += ["", f"### ({letter}) {row['part']}: {row['seconds']:.0f} of {row['cap_s']:.0f} s, {row['ended']}", ""]
        if row["figures"]:
            lines += ["| figure | here | held against |", "|---|---|---|"]
            lines += [f"| {name} | {_said(value)} | {against} |" for name, value, against in row["figures"]]
    return "\n".join(lines) + "\n"


def _said(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.4g}"


def pack(data: Path, folder: Path) -> None:
    """Write what a machine without polars and network needs, in two folders that each fit into one transfer."""
    first, second = folder / "first", folder / "second"
    for each in (first, second / "packages"):
        each.mkdir(parents=True)
    weights = smollm2().read_bytes()
    for number, each in enumerate((first, second)):
        half = slice(number * len(weights) // 2, (number + 1) * len(weights) // 2)
        (each / f"smollm2.gguf.{number}").write_bytes(weights[half])
    for name, (loader, source) in FOLDERS.items():
        dataset = datasets.load(loader, root=str(data / source))
        with gzip.open(second / f"{name}.pickle.gz", "wb") as file:
            pickle.dump(dataset, file)
    for name in CARRIED_PACKAGES:
        for member in importlib.metadata.files(name) or ():
            if member.suffix != ".pyc" and ".." not in member.parts:
                target = second / "packages" / member
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(member.locate(), target)
    for each in (first, second):
        size = sum(file.stat().st_size for file in each.rglob("*") if file.is_file())
        print(f"{each}: {size / 2**20:.1f} MiB")


def main(arguments: list[str] | None = None) -> int:
    """Run the schedule, or pack for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets, or what --pack made of them")
    parser.add_argument("--out", type=Path, help="where results.json and table.md go")
    parser.add_argument(
        "--minutes", type=float, default=FULL_MINUTES, help="of the whole schedule; caps shrink with it"
    )
    parser.add_argument(
        "--parts", default="".join(PARTS), help="letters of the parts to run, in the order of the schedule"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--tiny", action="store_true", help="small networks on a small synthetic world")
    parser.add_argument("--pack", type=Path, help="write what has to travel into this new folder, and run nothing")
    options = parser.parse_args(arguments)
    if options.data is None and (options.pack or not options.tiny):
        parser.error("--data: expected the folder of the data sets, or --tiny")
    if options.pack:
        pack(options.data, options.pack)
        return 0
    if options.out is None or options.minutes <= 0:
        parser.error(f"--out {options.out} --minutes {options.minutes}: expected a folder and a positive number")
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"--parts: unknown {unknown[0]!r}; expected some of {''.join(PARTS)}")
    started = time.perf_counter()
    bench = Bench(options.out, options.data, options.device, options.tiny)
    if "g" in options.parts and not options.tiny:
        bench.begin_unpacking()
    for letter, part in PARTS.items():
        if letter not in options.parts or bench.is_done(letter):
            continue
        rest = 60 * options.minutes - (time.perf_counter() - started)
        cap = min(part.seconds * min(1.0, options.minutes / FULL_MINUTES), rest)
        if cap <= 1:
            print(f"({letter}) {part.title}: no time left", flush=True)
            continue
        row = bench.play(letter, cap)
        bench.keep(letter, row)
        now = time.perf_counter() - started
        print(f"{now:6.1f} s  ({letter}) {part.title}: {row['seconds']} of {cap:.0f} s, {row['ended']}", flush=True)
    print((options.out / "table.md").read_text() if bench.results["parts"] else "nothing was run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
