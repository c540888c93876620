"""What the arms of +experiment=recloop2026 take at larger sizes: fitting, rounds with their retraining, memory.

Each cell is a process of its own that plays `--rounds` rounds of one arm, in CPU seconds of one thread, so that other
work on the machine does not count; 15 rounds are planned from them where fewer are played. Cells are kept: a second
call goes on.

    python benchmarks/p5_loop.py --users 300 1250 5000 --items 300 --rounds 15 --out runs/p5_loop.csv
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ARMS = ("random", "popularity", "itemknn", "p5-collaborative", "p5-fast", "p5-semantic", "sasrec")
COLUMNS = ("arm", "users", "items", "rounds", "fit_s", "first_s", "last_s", "minutes_of_15_rounds", "peak_gb")


def cell(arm: str, users: int, items: int, rounds: int) -> list[str]:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from experiments.running.design import CONF, design_from, offer_recommenders
    from simenv.platform import Platform

    offer_recommenders()
    with initialize_config_dir(str(CONF), version_base=None):
        made = compose("config", ["+experiment=recloop2026", f"n_users={users}", f"n_items={items}", "n_seeds=1"])
    design = design_from(OmegaConf.to_container(made, resolve=True))
    world = design.make_world(0)
    model = design.make_users()
    model.bind(world.dataset, world.tastes, seed=0, repeat=design.repeat, traits=world.traits)
    started = time.process_time()
    platform = Platform(
        world.dataset, model, design.make_recommender(arm), seed=0, mode="loop", schedule=design.schedule
    )
    fit = time.process_time() - started
    spent = []
    for _ in range(rounds):
        started = time.process_time()
        platform.step()
        spent.append(time.process_time() - started)
    minutes = (fit + spent[0] + 14 / max(1, rounds - 1) * sum(spent[1:])) / 60  # the first round compiles
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sizes = [arm, *map(str, (users, items, rounds))]
    return [*sizes, *(f"{value:.2f}" for value in (fit, spent[0], spent[-1], minutes, peak))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, nargs="+", default=[300, 1250, 5000])
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--out", type=Path, default=Path("runs/p5_loop.csv"))
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        print(",".join(cell(given.cell[0], int(given.cell[1]), given.items, given.rounds)))
        return
    given.out.parent.mkdir(parents=True, exist_ok=True)
    known = list(csv.DictReader(given.out.open())) if given.out.is_file() else []
    done = {(row["arm"], int(row["users"]), int(row["items"]), int(row["rounds"])) for row in known}
    with given.out.open("a") as file:
        if not known:
            print(",".join(COLUMNS), file=file)
        for users in given.users:
            for arm in given.arms:
                if (arm, users, given.items, given.rounds) in done:
                    continue
                command = [sys.executable, __file__, "--cell", arm, str(users)]
                command += ["--items", str(given.items), "--rounds", str(given.rounds)]
                line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
                print(line, file=file, flush=True)
                print(line, flush=True)


if __name__ == "__main__":
    main()
