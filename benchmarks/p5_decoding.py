"""Users per second of constrained decoding: this project's trie against transformers' generate, the same weights.

    python benchmarks/p5_decoding.py [--items 1682] [--users 512] [--beams 20] [--batch 64 128 256] [--rounds 3]

An untrained p5 on random histories: what is compared is decoding, and the lists must be the same. `generate` walks the
same trie through `prefix_allowed_tokens_fn`, one Python call per beam and step, from states of T5's own encoder, and
each way runs at the batch size that suits it best. Published evaluations widen the beam to 200 and more, so that enough
is left once seen items are dropped; exact mode ranks everything at once. Users per second of the clock need a machine
that does nothing else; those of CPU time, with OMP_NUM_THREADS=1, can be compared on a busy one too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recommenders.p5.generative import Decoding
from recommenders.p5.networks.t5 import P5Network
from recommenders.p5.prompted import P5
from recommenders.p5.trie import EXACT_LIMIT
from simenv.datasets.base import Interactions
from simenv.randomness import Key

Decode = Callable[[P5, np.ndarray, int, int], np.ndarray]


def random_log(n_users: int, n_items: int, length: int = 25) -> Interactions:
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, n_items + 1) ** 0.7
    n = n_users * length
    return Interactions(
        users=np.repeat(np.arange(n_users), length).astype(np.int32),
        items=rng.choice(n_items, n, p=share / share.sum()).astype(np.int32),
        ratings=np.full(n, np.nan, np.float32),
        times=np.tile(np.arange(length), n_users),
        n_users=n_users,
        n_items=n_items,
    )


def untrained(log: Interactions, **options: Any) -> P5:
    """A p5 after one step, its weights redrawn so that scores differ clearly."""
    recommender = P5(training={"max_minutes": 1e-9}, **options)
    recommender.fit(log, key=Key(0))
    generator = torch.Generator(device="cpu").manual_seed(0)
    with torch.no_grad():
        for parameter in recommender.network.parameters():
            if parameter.dim() > 1:
                fresh = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
                parameter.copy_(fresh * (8 if parameter.shape[0] > 1000 else 1))
    return recommender


@torch.no_grad()
def by_generate(recommender: P5, users: np.ndarray, k: int, beams: int) -> np.ndarray:
    """Lists (B, k) by constrained beam search of transformers, scores renormalised over the allowed tokens."""
    from transformers.modeling_outputs import BaseModelOutput

    network, depth = recommender.network, recommender.index.depth
    assert isinstance(network, P5Network)
    children: dict[tuple[int, ...], list[int]] = {}
    for code in recommender.index.codes.tolist():
        for level in range(depth):
            children.setdefault(tuple(code[:level]), []).append(code[level] + network.offsets[level])
    allowed = {path: sorted(set(tokens)) for path, tokens in children.items()}

    def walk(batch: int, prefix: torch.Tensor) -> list[int]:
        path = prefix[1:].tolist()
        return allowed[tuple(token - network.offsets[level] for level, token in enumerate(path))]

    states, mask = network.encode(recommender._asked(recommender.histories, users))
    written = network.t5.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=mask.long(),
        num_beams=beams,
        num_return_sequences=k,
        max_new_tokens=depth,
        min_new_tokens=depth,
        prefix_allowed_tokens_fn=walk,
        do_sample=False,
        length_penalty=0.0,
        renormalize_logits=True,
    )
    codes = written[:, 1 : depth + 1].cpu().numpy() - np.array(network.offsets)
    return recommender.index.items_of(codes).reshape(len(users), k)


def by_beam(recommender: P5, users: np.ndarray, k: int, beams: int) -> np.ndarray:
    recommender.decoding = Decoding(beam_width=beams)
    return recommender.beam(users, k)


def by_exact(recommender: P5, users: np.ndarray, k: int, beams: int) -> np.ndarray:
    scores = recommender.score_histories(recommender.histories, users)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def timed(decode: Decode, recommender: P5, users: np.ndarray, k: int, beams: int, batch: int) -> Any:
    """Lists of all users, and the seconds and CPU seconds they took."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started, cpu = time.perf_counter(), time.process_time()
    parts = [decode(recommender, users[start : start + batch], k, beams) for start in range(0, len(users), batch)]
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return np.concatenate(parts), time.perf_counter() - started, time.process_time() - cpu


def run(
    n_items: int,
    n_users: int,
    beams: int,
    k: int,
    batch: int | Sequence[int],
    device: str,
    rounds: int = 1,
    **options: Any,
) -> dict[str, Any]:
    """Speeds and lists of every way to decode, each at the best of these batch sizes: medians of `rounds` in turns."""
    recommender = untrained(random_log(max(n_users, 400), n_items), device=device, **options)
    users = np.arange(n_users)
    batches = [batch] if isinstance(batch, int) else list(batch)
    results: dict[str, Any] = {
        "items": n_items,
        "users": n_users,
        "beams": beams,
        "k": k,
        "device": device,
        "threads": torch.get_num_threads(),
        "internal_nodes": recommender.trie.n_nodes,
        "depth": recommender.index.depth,
    }
    methods: dict[str, Decode] = {"generate": by_generate, "beam": by_beam}
    if recommender.trie.n_nodes <= EXACT_LIMIT:
        methods["exact"] = by_exact
    turns = [(name, size) for size in batches for name in methods]
    for name, size in turns:
        methods[name](recommender, users[:size], k, beams)
    lists: dict[str, np.ndarray] = {}
    seconds: dict[tuple[str, int], list[tuple[float, float]]] = {turn: [] for turn in turns}  # of the clock, of the CPU
    for _ in range(rounds):  # side by side, so that other work on the machine slows all of them
        for name, size in turns:
            lists[name], *spent = timed(methods[name], recommender, users, k, beams, size)
            seconds[name, size].append((spent[0], spent[1]))
    median = {turn: np.median(spent, axis=0) for turn, spent in seconds.items()}
    best = {name: batches[int(np.argmin([median[name, size][1] for size in batches]))] for name in methods}
    wall, cpu = ({name: float(median[name, best[name]][clock]) for name in methods} for clock in (0, 1))
    for name, decode in methods.items():
        results[name] = {
            "batch": best[name],
            "users_per_s": n_users / wall[name],
            "users_per_cpu_s": n_users / cpu[name],
        }
        if name != "generate":
            results[name] |= {
                "times_generate": wall["generate"] / wall[name],
                "times_generate_cpu": cpu["generate"] / cpu[name],
                "same_lists": float((lists[name] == lists["generate"]).all(axis=1).mean()),
                "latency_ms_batch_1": 1000 * timed(decode, recommender, users[:8], k, beams, 1)[1] / len(users[:8]),
            }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1682)
    parser.add_argument("--users", type=int, default=512)
    parser.add_argument("--beams", type=int, default=200, help="200: as wide as lists without seen items need")
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[64, 128, 256], help="each way is given the best of these"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="the median of them counts")
    parser.add_argument("--index", default="collaborative")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = run(
        arguments.items, arguments.users, arguments.beams, arguments.k, arguments.batch, arguments.device,
        arguments.rounds, index=arguments.index,
    )  # fmt: skip
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
