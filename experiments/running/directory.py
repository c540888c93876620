"""A run directory: what it may hold, who may work on it, and the files at the end."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import platform as machine
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.running.design import Design, Job, World, design_from
from simenv.errors import RunDirectoryError
from simenv.metrics import frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPLETE = "complete.json"


class RunDirectory:
    """The folder of one run.

    Args:
        path: the folder.
        config: resolved configuration without secrets, written to ``config.yaml``.
        resume: the folder must hold an interrupted or finished run of this configuration; otherwise it must be new.

    Raises:
        RunDirectoryError: it holds another run, is missing, or is in use by another process.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], *, resume: bool = False) -> None:
        from omegaconf import OmegaConf

        self.path, self.config = Path(path), dict(config)
        self.checkpoint = self.path / "checkpoint"
        text = OmegaConf.to_yaml(OmegaConf.create(dict(config)), sort_keys=True)
        stored = self.path / "config.yaml"
        if resume and not self.path.is_dir():
            raise RunDirectoryError(f"resume={self.path}: no such run directory")
        if stored.is_file():
            if not resume:
                raise RunDirectoryError(
                    f"{self.path}: already holds a run; go on with resume={self.path}, or choose another"
                )
            if stored.read_text() != text:
                changed = ", ".join(_changed(stored.read_text(), text))
                raise RunDirectoryError(
                    f"resume={self.path}: its config.yaml is another configuration's (differs in {changed})"
                )
        elif resume and any(self.path.iterdir()):
            raise RunDirectoryError(f"resume={self.path}: has no config.yaml; expected a run directory")
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise RunDirectoryError(f"{self.path}: is not empty; expected a new folder for the run")
        self.checkpoint.mkdir(parents=True, exist_ok=True)
        if not stored.is_file():
            stored.write_text(text)

    @property
    def complete(self) -> bool:
        return (self.checkpoint / COMPLETE).is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory; a second process is turned away."""
        with (self.checkpoint / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunDirectoryError(f"{self.path}: another process is working on this run") from error
            yield

    def job_done(self, job: Job, digest: str) -> bool:
        """Whether the job is finished, under this design."""
        path = self.checkpoint / job.id / "done.json"
        if not path.is_file():
            return False
        if json.loads(path.read_text())["digest"] != digest:
            raise RunDirectoryError(f"{path}: checkpoint of another configuration; expected this run's own")
        return True

    def finish(self) -> None:
        """Mark the run complete and drop the checkpoints."""
        (self.checkpoint / COMPLETE).write_text(json.dumps({"complete": True}) + "\n")
        for folder in self.checkpoint.iterdir():
            if folder.is_dir():
                shutil.rmtree(folder)
        (self.checkpoint / "lock").unlink(missing_ok=True)


def config_of(folder: Path) -> dict[str, Any]:
    """The resolved configuration in a run directory's `config.yaml`."""
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(OmegaConf.load(Path(folder) / "config.yaml"))
    return {str(key): value for key, value in config.items()}


def design_of(folder: Path) -> Design:
    """The design that a run directory's `config.yaml` describes."""
    return design_from(config_of(folder))


# -- files at the end ---------------------------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    """A JSON file, numbers and arrays of NumPy included."""
    path.write_text(json.dumps(value, indent=1, default=_to_json) + "\n")


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], types: Mapping[str, str] | None = None) -> None:
    """A tidy CSV table; NaN is an empty cell.

    Args:
        path: of the file; its folder is made.
        rows: with the same keys.
        types: polars type names of columns that may hold nothing but None.
    """
    import polars as pl

    path.parent.mkdir(exist_ok=True)
    overrides = {name: getattr(pl, kind) for name, kind in (types or {}).items()}
    table = pl.DataFrame(list(rows), schema_overrides=overrides, infer_schema_length=None)
    table.with_columns(pl.col(pl.Float64).fill_nan(None)).write_csv(path)


def save_figure(folder: Path, name: str, figure: Figure, *, title: str, caption: str) -> None:
    """`figures/<name>.png`, and beside it a `.json` with title and caption for who builds a page from it."""
    from simenv.figures.style import png_bytes

    path = folder / "figures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(png_bytes(figure))
    write_json(path.with_suffix(".json"), {"title": title, "caption": caption})


def write_metrics(design: Design, run: RunDirectory) -> None:
    """`metrics.csv` from the finished jobs, in the order of the design."""
    rows = []
    for job in design.jobs():
        rows += json.loads((run.checkpoint / job.id / "metrics.json").read_text())
    frame.write_metrics(rows, run.path)


def write_world_tables(worlds: Mapping[int, World], run: RunDirectory) -> None:
    """`items.parquet` and `users.parquet`: what is needed to read the events, one block of rows per seed."""
    import polars as pl

    items, users = [], []
    for seed, world in worlds.items():
        data, ref = world.dataset, world.reference
        catalog = data.catalog
        n = data.n_items
        quality = catalog.quality if catalog.quality is not None else np.full(n, np.nan, np.float32)
        items.append(
            pl.DataFrame(
                {
                    "seed": np.full(n, seed, np.int64),
                    "item": np.arange(n, dtype=np.int32),
                    "item_id": list(catalog.item_ids),
                    "title": list(catalog.titles),
                    "genres": ["|".join(g for g, on in zip(catalog.genre_names, row) if on) for row in catalog.genres],
                    "quality": pl.Series(quality, nan_to_null=True),
                    "popularity0": ref.counts,
                    "popularity0_pct": ref.percentile,
                    "head": ~ref.tail,
                }
            )
        )
        traits = {name: values for name, values in world.traits.columns().items() if name != "activity"}
        groups: dict[str, list[str | None]] = {}
        for group in ref.groups.values():
            name, _, value = group.name.partition("=")
            if value:
                column = groups.setdefault(name, [None] * data.n_users)
                for row in np.flatnonzero(group.users):
                    column[row] = value
        users.append(
            pl.DataFrame(
                {
                    "seed": np.full(data.n_users, seed, np.int64),
                    "user": np.arange(data.n_users, dtype=np.int32),
                    "user_id": list(data.user_ids),
                    "n_warm_start": ref.history,
                }
                | groups
                | {name: values for name, values in traits.items() if name not in groups}
            )
        )
    pl.concat(items).write_parquet(run.path / "items.parquet")
    pl.concat(users, how="diagonal_relaxed").write_parquet(run.path / "users.parquet")


def card_of_jobs(
    design: Design, run: RunDirectory, worlds: Mapping[int, World], gates: Sequence[str]
) -> dict[str, Any]:
    """What a run card says of the jobs that were played, their worlds, and the gates that passed."""
    done = {job.id: json.loads((run.checkpoint / job.id / "done.json").read_text()) for job in design.jobs()}
    card = {
        "seeds": list(design.seeds),
        "rounds": design.rounds,
        "arms": [f"{arm}:{mode}" for arm, mode in design.arms],
        "regime": design.repeat,
        "worlds": {
            str(seed): {
                "dataset": world.dataset.name,
                "n_users": world.dataset.n_users,
                "n_items": world.dataset.n_items,
                "n_warm_start": len(world.dataset.interactions),
                "bin_edges": world.reference.edges(),
                "tastes": {"kind": world.tastes.kind, "errors": dict(world.tastes.errors)},
            }
            for seed, world in worlds.items()
        },
        "utility": next(iter(worlds.values())).tastes.kind,
        "job_seconds": {name: round(one["seconds"], 3) for name, one in done.items()},
        "gates": [
            {"name": name, "passed": True, "detail": f"in {count} logs"}
            for name, count in sorted(Counter(line.partition(": ")[2] for line in gates).items())
        ],
    }
    for side in ("llm", "recommender_llm"):
        accounting = {name: one[side] for name, one in done.items() if one.get(side)}
        if accounting:
            card[side] = _llm_total(list(accounting.values())) | {"jobs": accounting}
    return card


def card_of_machine(started: float) -> dict[str, Any]:
    """What a run card says of versions, commit and time; `started` is a `time.time()`."""
    names = ("simenv", "numpy", "scipy", "numba", "mesa", "gymnasium", "polars", "pyarrow", "implicit", "torch")
    versions = {"python": machine.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "git_commit": _git_commit(),
        "wall_time_s": round(time.time() - started, 1),
    }


def _llm_total(jobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all jobs asked the language model, with what names it."""
    named = {name: value for name, value in jobs[0].items() if name not in ("total", "rounds")}
    counters = sorted({name for job in jobs for name in job["total"]})
    return named | {name: sum(job["total"].get(name, 0) for job in jobs) for name in counters}


def _to_json(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _changed(old: str, new: str) -> list[str]:
    """Top-level keys in which two YAML texts differ."""
    from omegaconf import OmegaConf

    a: Any = OmegaConf.to_container(OmegaConf.create(old))
    b: Any = OmegaConf.to_container(OmegaConf.create(new))
    return sorted(str(key) for key in {*a, *b} if a.get(key) != b.get(key)) or ["its layout"]
