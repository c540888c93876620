"""P5 on a GPU: quality, speed and decoding on Beauty and ML-1M, as one resumable command.

    python benchmarks/p5_gpu.py --data FOLDER --out runs/p5 [--minutes 9] [--parts quality,ablation,time,speed,decoding]
    python benchmarks/p5_gpu.py --tiny --out runs/p5-tiny       # every part on a small synthetic world, on the CPU
    python benchmarks/p5_gpu.py --tiny --device cuda --out runs/p5-try      # the same on the GPU, before the real thing

FOLDER holds `amazon-beauty-2014/` and `ml-1m-u2999/`; no network is used. Each job is one line of the plan below; what
is done stands in `results.json` and is not done again, so that the command is repeated until it says "all done". A job
cut off by the time limit goes on from its checkpoint; baselines, some minutes long, start again. A job that fails
leaves its traceback in `results.json` and the others go on; `--retry` tries it again. `table.md` is rewritten after
each job.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recommenders.base import Recommender
from recommenders.evaluation.lists import popularity_by_history, popularity_by_rank
from recommenders.evaluation.offline import rank_metrics, ranks
from recommenders.neighbours import SeqKNN
from recommenders.neural.sequential import BERT4Rec, SASRec, SequenceRecommender
from recommenders.p5.generative import Decoding, GenerativeRecommender, P5Fast
from recommenders.p5.prompted import P5
from recommenders.popularity import Popularity
from simenv import datasets
from simenv.datasets.base import Dataset
from simenv.datasets.splits import Split, leave_one_out
from simenv.metrics.reference import midrank_percentile
from simenv.randomness import Key
from simenv.records import nested
from simenv.training.histories import Histories

sys.path.insert(0, str(Path(__file__).parent))
import p5_decoding

PARTS = ("quality", "ablation", "time", "speed", "decoding")
FOLDERS = {"beauty": ("amazon", "amazon-beauty-2014"), "ml-1m": ("ml-1m", "ml-1m-u2999")}
Job = dict[str, Any]

CID = {"index.name": "collaborative", "index.options": {"window": 3}}
CID_IID = {"index.name": "collaborative+independent", "index.options": {"window": 3}}
RQ_VAE = {"index.name": "rqvae", "index.options": {"codewords": 256, "vectors": "text"}}
FAST = {
    "network.embedding_size": 256, "network.layers": 4, "network.heads": 4, "network.depth_layers": 2,
    "network.dropout": 0.3, "network.history": 50, "training.epochs": 150, "training.batch_size": 512,
    "training.learning_rate": 2e-3, "training.early_stop": True, "training.evaluate_every": 10, "training.patience": 4,
}  # fmt: skip
LANGUAGE = {
    "network.embedding_size": 256, "network.layers": 4, "network.heads": 4, "network.dropout": 0.2,
    "asking.history": 20, "training.epochs": 60, "training.batch_size": 1024, "training.learning_rate": 2e-3,
    "training.early_stop": True, "training.evaluate_every": 5, "training.patience": 3,
}  # fmt: skip
BASELINE = {
    "embedding_size": 256, "layers": 2, "dropout": 0.3, "history": 50, "training.epochs": 150,
    "training.batch_size": 256, "training.learning_rate": 1e-3, "training.early_stop": True,
    "training.evaluate_every": 10, "training.patience": 4,
}  # fmt: skip
TINY = {"embedding_size": 16, "layers": 1, "heads": 2, "epochs": 1, "batch_size": 64, "history": 8}


def plan() -> list[Job]:
    """Every job, the most telling ones first: one seed of everything, then the other seeds."""
    jobs: list[Job] = []
    for dataset in ("beauty", "ml-1m"):
        jobs += [
            {"part": "quality", "dataset": dataset, "model": model, "label": model, "options": {}, "seed": 0}
            for model in ("popularity", "seqknn")
        ]
        for seed in range(3):
            rows: list[tuple[str, str, dict[str, Any]]] = [
                ("p5-fast", "p5-fast CID+IID", {**FAST, **CID_IID}),
                ("p5-fast", "p5-fast CID", {**FAST, **CID}),
                ("sasrec", "SASRec full cross-entropy", BASELINE),
                ("bert4rec", "BERT4Rec", BASELINE),
            ]
            if dataset == "beauty":
                rows += [
                    ("p5", "p5 CID", {**LANGUAGE, **CID}),
                    ("p5", "p5 CID+IID", {**LANGUAGE, **CID_IID}),
                    ("p5", "p5 RQ-VAE", {**LANGUAGE, **RQ_VAE}),
                ]
            jobs += [
                {
                    "part": "quality",
                    "dataset": dataset,
                    "model": model,
                    "label": label,
                    "options": options,
                    "seed": seed,
                }
                for model, label, options in rows
            ]
    ablations: list[tuple[str, str, dict[str, Any]]] = [
        ("p5", "whole-word tokens instead of pooled items", {"network.item_input": "tokens"}),
        ("p5", "decoder-only backbone", {"network.backbone": "llama"}),
        ("p5", "history 10", {"asking.history": 10}),
        ("p5", "history 50", {"asking.history": 50}),
        ("p5", "dropout .1", {"network.dropout": 0.1}),
    ]
    jobs += [
        {"part": "ablation", "dataset": "beauty", "model": model, "label": label,
         "options": {**LANGUAGE, **CID_IID, **change}, "seed": 0}
        for model, label, change in ablations
    ]  # fmt: skip
    jobs += [
        {"part": "time", "dataset": "beauty", "model": "p5-fast", "label": f"p5-fast CID+IID, {minutes:g} min",
         "options": {**FAST, **CID_IID, "training.max_minutes": minutes}, "seed": 0}
        for minutes in (0.5, 1.0, 3.0)
    ]  # fmt: skip
    for model, label, options in (("p5-fast", "p5-fast", FAST), ("p5", "p5", LANGUAGE)):
        jobs.append(
            {"part": "speed", "dataset": "beauty", "model": model, "label": label,
             "options": {**options, **CID_IID, "training.early_stop": False, "training.epochs": 3}, "seed": 0}
        )  # fmt: skip
    jobs += [
        {"part": "decoding", "dataset": "random", "model": "p5", "label": f"{items:,} items, {beams} beams",
         "options": {"n_items": items, "beams": beams}, "seed": 0}
        for items in (1_682, 12_101) for beams in (20, 100)
    ]  # fmt: skip
    order = [("quality", "beauty"), ("speed", "beauty"), ("decoding", "random"), ("quality", "ml-1m")]
    place = {what: number for number, what in enumerate(order)}
    return sorted(jobs, key=lambda job: (job["seed"], place.get((job["part"], job["dataset"]), len(order))))


def key_of(job: Job) -> str:
    return f"{job['part']} | {job['dataset']} | {job['label']} | seed {job['seed']}"


class OutOfTime(Exception):
    """The time limit came while a job trained; what it has learned by its last epoch is in its checkpoint."""


class Bench:
    """Runs jobs, keeps results, writes the table."""

    def __init__(self, out: Path, data: Path | None, tiny: bool, device: str, peak_tflops: float) -> None:
        self.out, self.data, self.tiny, self.device, self.peak = out, data, tiny, device, peak_tflops
        self.out.mkdir(parents=True, exist_ok=True)
        self.file = out / "results.json"
        self.results: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.splits: dict[str, tuple[Dataset, Split]] = {}
        self.deadline = float("inf")  # of training, on the clock of time.perf_counter

    def split(self, name: str) -> tuple[Dataset, Split]:
        if name not in self.splits:
            if self.tiny:
                dataset = datasets.load("synthetic", n_users=80, n_items=120, seed=0)
            else:
                loader, folder = FOLDERS[name]
                assert self.data is not None
                dataset = datasets.load(loader, root=str(self.data / folder))
            self.splits[name] = dataset, leave_one_out(dataset.interactions)
        return self.splits[name]

    def recommender(self, job: Job) -> Recommender:
        makers: dict[str, Callable[..., Recommender]] = {
            "popularity": Popularity, "seqknn": SeqKNN, "sasrec": SASRec, "bert4rec": BERT4Rec,
            "p5": P5, "p5-fast": P5Fast,
        }  # fmt: skip
        options = dict(job["options"])
        if self.tiny and options:
            options.update({name: TINY[last] for name in options if (last := name.rpartition(".")[2]) in TINY})
            if "training.max_minutes" in options:
                options["training.max_minutes"] = 0.01
        if job["model"] not in ("popularity", "seqknn"):
            options["device"] = self.device
        if job["model"] in ("p5", "p5-fast"):
            options["checkpoint"] = self.checkpoint(job)
        return makers[job["model"]](**nested(options))

    def checkpoint(self, job: Job) -> Path:
        name = "".join(c if c.isalnum() else "-" for c in key_of(job))
        return self.out / "checkpoints" / f"{name}.pt"

    def run(self, job: Job) -> dict[str, Any]:
        if job["part"] == "decoding":
            return self.decoding(job)
        dataset, split = self.split(job["dataset"])
        recommender = self.recommender(job)
        if hasattr(recommender, "bind_dataset"):
            recommender.bind_dataset(dataset)
        if isinstance(recommender, GenerativeRecommender | SequenceRecommender):
            recommender._loss = self.in_time(recommender._loss)  # type: ignore[method-assign]
        started = time.perf_counter()
        recommender.fit(split.train, key=Key(job["seed"]))
        trained = getattr(recommender, "progress", None)  # what was trained before an interruption counts too
        row: dict[str, Any] = {"fit_s": time.perf_counter() - started if trained is None else trained.seconds}
        if job["part"] == "speed":
            return row | self.speed(recommender)
        row |= self.quality(recommender, split)
        if isinstance(recommender, GenerativeRecommender):
            progress = recommender.progress
            row |= {
                "curve": progress.scores,
                "epochs": progress.epoch,
                "best_epoch": progress.best_epoch,
                "internal_nodes": recommender.trie.n_nodes,
                "parameters": sum(p.numel() for p in recommender.network.parameters()),
                "beam_against_exact": self.beam_against_exact(recommender, split),
            }
        if isinstance(recommender, P5):
            for ask in ("unseen", "none"):
                recommender.ask = ask
                row[ask] = {"filtered": self.quality(recommender, split)["filtered"]}
        return row

    def in_time(self, loss: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The same loss until the time limit."""

        def bounded(batch: Any) -> Any:
            if time.perf_counter() > self.deadline:
                raise OutOfTime
            return loss(batch)

        return bounded

    def quality(self, recommender: Recommender, split: Split) -> dict[str, Any]:
        rows = {}
        for filter_seen, name in ((True, "filtered"), (False, "unfiltered")):
            metrics = rank_metrics(ranks(recommender, split, filter_seen=filter_seen))
            rows[name] = {metric: float(values.mean()) for metric, values in metrics.items()}
        return rows

    def beam_against_exact(self, recommender: GenerativeRecommender, split: Split) -> dict[str, Any]:
        """Popularity of the same weights' lists by beam and by exact ranking, by rank and by history length."""
        users = split.users[:2_000]
        histories = Histories.from_log(split.train)
        percentile = midrank_percentile(split.train.item_counts())
        saved, rows = recommender.decoding, {}
        for mode in ("exact", "beam"):
            recommender.decoding = Decoding(kind=mode)
            lists = recommender.recommend(users, 10).item_ids
            rows[mode] = {
                "popularity_by_rank": popularity_by_rank(lists, percentile).tolist(),
                "popularity_by_history": popularity_by_history(lists, percentile, histories.lengths[users])[1].tolist(),
            }
        recommender.decoding = saved
        return rows

    def speed(self, recommender: Recommender) -> dict[str, Any]:
        """Training speed without start-up, and the share of the card's bfloat16 peak it amounts to."""
        assert isinstance(recommender, GenerativeRecommender)
        progress = recommender.progress
        dense = sum(
            p.numel() for name, p in recommender.network.named_parameters() if p.dim() > 1 and "tokens" not in name
        )
        per_s = progress.samples / progress.seconds
        flops = 6 * dense * per_s * (1 if isinstance(recommender, P5Fast) else recommender.history + 12)
        return {
            "targets_per_s": per_s,
            "tflops": flops / 1e12,
            "share_of_peak": flops / 1e12 / self.peak,
            "flops_rule": "6 x dense weights x positions (attention scores and embeddings left out)",
        }

    def decoding(self, job: Job) -> dict[str, Any]:
        options = job["options"]
        n_items = 150 if self.tiny else options["n_items"]
        users, batch = (8, 4) if self.tiny else (512, 128)
        beams = min(options["beams"], 20) if self.tiny else options["beams"]
        shape = {} if self.tiny else {"embedding_size": 256, "layers": 4}
        return p5_decoding.run(n_items, users, beams, 10, batch, self.device, **CID, **shape)

    def keep(self, job: Job, row: dict[str, Any]) -> None:
        self.results[key_of(job)] = {"job": job, **row}
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.results, indent=1))
        partial.replace(self.file)
        (self.out / "table.md").write_text(table(self.results))
        self.checkpoint(job).unlink(missing_ok=True)


def table(results: dict[str, Any]) -> str:
    """All results as Markdown: quality as mean over seeds, the rest row by row."""
    lines = [
        "| part | data | what | seeds | HR@5 | NDCG@5 | HR@10 | NDCG@10 | HR@10, seen kept | fit s |",
        "|" + "---|" * 10,
    ]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in results.values():
        if "error" in row:
            continue
        job = row["job"]
        groups.setdefault((job["part"], job["dataset"], job["label"]), []).append(row)
    for (part, dataset, label), rows in groups.items():
        if "filtered" in rows[0]:
            cells = [
                f"{np.mean([row['filtered'][metric] for row in rows]):.4f}"
                for metric in ("hr@5", "ndcg@5", "hr@10", "ndcg@10")
            ]
            kept = np.mean([row["unfiltered"]["hr@10"] for row in rows])
            seconds = np.mean([row["fit_s"] for row in rows])
            lines.append(
                f"| {part} | {dataset} | {label} | {len(rows)} | {' | '.join(cells)} | {kept:.4f} | {seconds:.0f} |"
            )
    lines += ["", "| what | targets/s | TFLOP/s | share of peak |", "|---|---|---|---|"]
    for (part, _, label), rows in groups.items():
        if part == "speed":
            row = rows[0]
            lines.append(
                f"| {label} | {row['targets_per_s']:,.0f} | {row['tflops']:.2f} | {row['share_of_peak']:.4f} |"
            )
    lines += [
        "",
        "| decoding | mode | users/s | times generate | same lists | ms at batch 1 |",
        "|---|---|---|---|---|---|",
    ]
    for (part, _, label), rows in groups.items():
        for mode in ("generate", "beam", "exact"):
            if part == "decoding" and mode in rows[0]:
                row = rows[0][mode]
                cells = [
                    f"{row[name]:.3g}" if name in row else ""
                    for name in ("times_generate", "same_lists", "latency_ms_batch_1")
                ]
                lines.append(f"| {label} | {mode} | {row['users_per_s']:,.0f} | {' | '.join(cells)} |")
    failed = [f"- {name}: {row['error'].splitlines()[0]}" for name, row in results.items() if "error" in row]
    lines += ["", "Failed:", *failed] if failed else []
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--minutes", type=float, default=9.0, help="train no longer than this")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: cuda where there is one, the CPU with --tiny")
    parser.add_argument("--retry", action="store_true", help="run again what has failed")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bfloat16 peak of the card (H200: 989)")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    if options.data is None and not options.tiny:
        parser.error("--data: expected the folder of the data sets, or --tiny")
    device = options.device or ("cuda" if torch.cuda.is_available() and not options.tiny else "cpu")
    bench = Bench(options.out, options.data, options.tiny, device, options.peak_tflops)
    parts = options.parts.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"--parts: unknown {unknown[0]!r}; expected some of {', '.join(PARTS)}")
    jobs = [job for job in plan() if job["part"] in parts and (not options.tiny or job["seed"] == 0)]
    started = time.perf_counter()
    bench.deadline = started + 60 * options.minutes
    for job in jobs:
        failed = "error" in bench.results.get(key_of(job), {})
        if key_of(job) in bench.results and not (failed and options.retry):
            continue
        if time.perf_counter() - started > 60 * options.minutes:
            break
        try:
            row = bench.run(job)
        except OutOfTime:
            print(f"{time.perf_counter() - started:6.0f} s  {key_of(job)}: stopped at the time limit", flush=True)
            break
        except Exception as error:  # whatever it is, the other jobs are worth their time on the card
            row = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        bench.keep(job, row)
        reason = f"  FAILED {row['error'].splitlines()[0]}" if "error" in row else ""
        print(f"{time.perf_counter() - started:6.0f} s  {key_of(job)}{reason}", flush=True)
    left = sum(key_of(job) not in bench.results for job in jobs)
    print("all done" if not left else f"{left} jobs left: run the same command again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
