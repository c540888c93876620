"""Two user models on the same pages: python benchmarks/paired_realism.py RUN OTHER

The difference of their AUC within a page, RUN minus OTHER, over the users that both realism runs judged
(`tables/realism_users.csv`), with a 95 % bootstrap interval over these users. Both runs must have drawn the same pages:
the baselines, which are fitted to the same data, are compared to see that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from experiments.realism.tests import UserBootstrap, mean

SAME = "popularity"  # a baseline without luck


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path, metavar=("RUN", "OTHER"))
    tables = [pl.read_csv(run / "tables" / "realism_users.csv") for run in parser.parse_args().runs]
    both = tables[0].join(tables[1], on=["setting", "user", "model"], suffix="_other")
    known = {"popularity", "itemknn", "ease", "svd"}
    own = [next(name for name in table["model"].unique() if name not in known) for table in tables]
    for setting in both["setting"].unique(maintain_order=True).to_list():
        same = both.filter((pl.col("setting") == setting) & (pl.col("model") == SAME))
        if not (same["auc"] - same["auc_other"]).abs().max() < 1e-9:
            raise SystemExit(f"{setting}: the runs drew other pages")
        one, other = (
            table.filter((pl.col("setting") == setting) & (pl.col("model") == name))
            for table, name in zip(tables, own, strict=True)
        )
        pairs = one.join(other, on="user", suffix="_other").sort("user")
        boot = UserBootstrap(len(pairs))
        values = {
            "RUN": pairs["auc"].to_numpy(),
            "OTHER": pairs["auc_other"].to_numpy(),
            "RUN - OTHER": (pairs["auc"] - pairs["auc_other"]).to_numpy(),
        }
        for name, value in values.items():
            row = boot.row("", setting, name, "auc", mean(value))
            print(f"{setting}: {name} {row.value:+.3f} ({row.ci_low:+.3f} to {row.ci_high:+.3f}), {len(pairs)} users")


if __name__ == "__main__":
    main()
