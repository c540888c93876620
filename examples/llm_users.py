"""LLM users: what they are asked, what it would cost, and a short feedback loop with them.

    python examples/llm_users.py                                          # one full prompt and the cost; asks nothing
    ollama serve & python examples/llm_users.py --model llama3.1 --base-url http://localhost:11434/v1
    vllm serve Qwen/Qwen3-8B & python examples/llm_users.py --model Qwen/Qwen3-8B --base-url http://localhost:8000/v1
    OPENAI_API_KEY=... python examples/llm_users.py --model gpt-4o-mini --price 0.15 0.60 --dollars 1

A second run with the same options asks nothing: its answers are in the cache.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from agents.llm.user import LLMUser
from recommenders.popularity import Popularity
from simenv.datasets import synthetic
from simenv.language_models import openai
from simenv.platform import Platform, Schedule
from simenv.randomness import Key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="as the server calls it; without one nothing is asked")
    parser.add_argument("--base-url", default=None, help="an OpenAI-compatible server; default: the hosted service")
    parser.add_argument("--cache", type=Path, default=Path("llm_users.db"), help="where answers are kept")
    parser.add_argument(
        "--price", type=float, nargs=2, default=(0.0, 0.0), help="dollars per million tokens, in and out"
    )
    parser.add_argument("--dollars", type=float, default=None, help="budget")
    parser.add_argument("--users", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    world = synthetic(n_users=options.users, n_items=200, seed=0)
    language_model = openai(
        options.model or "none",
        options.base_url or (None if options.model else "http://localhost/v1"),
        cache=options.cache,
        price_prompt=options.price[0],
        price_completion=options.price[1],
        budget_dollars=options.dollars,
    )
    users = LLMUser(language_model)
    users.bind(world, world.tastes, seed=0)

    sample = np.argsort(-world.interactions.item_counts())[:10].astype(np.int32)
    pages = options.users * options.rounds
    print(users.dry_run(np.arange(options.users), np.tile(sample, (options.users, 1)), Key(0), pages=pages))
    if options.model is None:
        return

    platform = Platform(world, users, Popularity(), seed=0, schedule=Schedule(slate_size=10))
    for _ in range(options.rounds):
        platform.step()
        events = platform.round_events
        print(
            f"round {platform.round - 1}: clicked {events.clicked.mean():.1%} of {len(events.item)} impressions, "
            f"mean rating {np.nanmean(events.rating):.2f}"
        )
    total = users.accounting["total"]
    print(
        f"{total['calls']} calls, {total['cached']} from the cache, {total['prompt_tokens']} + "
        f"{total['completion_tokens']} tokens, ${total['dollars']:.4f}; {total['repairs']} repaired, "
        f"{total['second_attempts']} asked twice, {total['fallbacks']} left to the embedded model"
    )


if __name__ == "__main__":
    main()
