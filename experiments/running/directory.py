"""A run directory: what it may hold, who may work on it, and the files at the end."""

from __future__ import annotations

import fcntl
import importlib.metadata
import io
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
from simenv.events import strange_event_file
from simenv.files import COMPLETE, check_finished, checksums, damaged, read_sealed, write_sealed, write_whole
from simenv.metrics import frame

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

_BYSTANDERS = (".hydra",)  # what Hydra may put into a new run directory, beside its logs
_RESULTS = (
    "config.yaml",
    "run_card.json",
    "metrics.csv",
    "claims.json",
    "items.parquet",
    "users.parquet",
    "transcripts.json",
)


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
        self.progress = self.checkpoint / "progress.json"
        text = OmegaConf.to_yaml(OmegaConf.create(dict(config)), sort_keys=True)
        stored = self.path / "config.yaml"
        if resume and not self.path.is_dir():
            raise RunDirectoryError(f"resume={self.path}: no such run directory")
        if self.path.exists() and not self.path.is_dir():
            raise RunDirectoryError(f"{self.path}: is a file; expected a folder for the run")
        if stored.is_file():
            if not resume:
                raise RunDirectoryError(
                    f"{self.path}: already holds a run; go on with resume={self.path}, or choose another"
                )
            if (found := _text(stored)) != text:
                changed = ", ".join(_changed(stored, found, text))
                raise RunDirectoryError(
                    f"resume={self.path}: its config.yaml is another configuration's (differs in {changed})"
                )
        elif resume and self._strangers():
            raise RunDirectoryError(f"resume={self.path}: has no config.yaml; expected a run directory")
        elif self.path.is_dir() and self._strangers():
            raise RunDirectoryError(f"{self.path}: is not empty; expected a new folder for the run")
        if (strange := strange_event_file(self.path)) is not None:
            raise RunDirectoryError(f"{strange}: not of this run; expected the files that it wrote alone: move it away")
        self.checkpoint.mkdir(parents=True, exist_ok=True)
        if not stored.is_file():
            write_whole(stored, text)

    def _strangers(self) -> list[Path]:
        """What lies in the folder and is not the run's."""
        own = (*_BYSTANDERS, "checkpoint", "config.yaml.partial")
        return [path for path in self.path.iterdir() if path.name not in own and path.suffix != ".log"]

    @property
    def complete(self) -> bool:
        """Whether the run is finished.

        Raises:
            RunDirectoryError: it is, and a file is no longer what it was.
        """
        if read_sealed(self.path / COMPLETE) is None and not _finished_before(self.path / COMPLETE):
            return False
        check_finished(self.path)
        return True

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
        """Whether the job is finished, under this design, and all that it wrote is whole."""
        path = self.checkpoint / job.id / "done.json"
        done = read_sealed(path)
        if done is None:
            return False
        if done["digest"] != digest:
            raise RunDirectoryError(f"{path}: checkpoint of another configuration; expected this run's own")
        return damaged(self.path, done["files"]) is None

    def finish(self) -> None:
        """Mark the run complete, with the checksums of its results, and drop the checkpoints."""
        write_sealed(self.path / COMPLETE, {"complete": True, "files": checksums(self.path, self._results())})
        for folder in self.checkpoint.iterdir():
            if folder.is_dir():
                shutil.rmtree(folder)
        self.progress.unlink(missing_ok=True)
        (self.checkpoint / "lock").unlink(missing_ok=True)

    def _results(self) -> list[Path]:
        """What a report or another experiment reads: not the page, nor the figures that come with it."""
        found = [self.path / name for name in _RESULTS]
        for folder, suffix in (("events", ".parquet"), ("heard", ".parquet"), ("tables", ".csv"), ("figures", ".json")):
            if (self.path / folder).is_dir():
                found += [path for path in (self.path / folder).iterdir() if path.suffix == suffix]
        found += [path.with_suffix(".png") for path in found if path.parent.name == "figures"]
        return [path for path in found if path.is_file()]


def config_of(folder: Path) -> dict[str, Any]:
    """The resolved configuration in a run directory's `config.yaml`.

    Raises:
        RunDirectoryError: there is none, or it is damaged.
    """
    path = Path(folder) / "config.yaml"
    return _parsed(path, _text(path))


def design_of(folder: Path) -> Design:
    """The design that a run directory's `config.yaml` describes."""
    return design_from(config_of(folder))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunDirectoryError(f"{path}: cannot be read ({error}); expected a configuration") from error


def _parsed(path: Path, text: str) -> dict[str, Any]:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config: Any = OmegaConf.to_container(OmegaConf.create(text))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise RunDirectoryError(f"{path}: damaged; expected a configuration in YAML") from error
    if not isinstance(config, dict) or not config:
        raise RunDirectoryError(f"{path}: damaged; expected a configuration in YAML")
    return {str(key): value for key, value in config.items()}


def _finished_before(path: Path) -> bool:
    """Whether a version that kept no checksums finished the run."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == {"complete": True})
    except (OSError, ValueError):
        return False


# -- files at the end ---------------------------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    """A JSON file, numbers and arrays of NumPy included."""
    write_whole(path, json.dumps(value, indent=1, default=_to_json) + "\n")


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
    write_whole(path, table.with_columns(pl.col(pl.Float64).fill_nan(None)).write_csv())


def save_figure(folder: Path, name: str, figure: Figure, *, title: str, caption: str) -> None:
    """`figures/<name>.png`, and beside it a `.json` with title and caption for who builds a page from it."""
    from simenv.figures.style import png_bytes

    path = folder / "figures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    write_whole(path, png_bytes(figure))
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
    _write_parquet(run.path / "items.parquet", pl.concat(items))
    _write_parquet(run.path / "users.parquet", pl.concat(users, how="diagonal_relaxed"))


def _write_parquet(path: Path, table: pl.DataFrame) -> None:
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    write_whole(path, buffer.getvalue())


def card_of_jobs(
    design: Design, run: RunDirectory, worlds: Mapping[int, World], gates: Sequence[str]
) -> dict[str, Any]:
    """What a run card says of the jobs that were played, their worlds, and the gates that passed."""
    done = {job.id: _done(run, job) for job in design.jobs()}
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
    models: list[set[str]] = []
    for side in ("llm", "recommender_llm"):
        accounting = {name: one[side] for name, one in done.items() if one.get(side)}
        if accounting:
            card[side] = _llm_total(list(accounting.values())) | {"jobs": accounting}
            models.append({one["model"] for one in accounting.values()})
    if len(models) == 2:
        card["same_model"] = not models[0].isdisjoint(models[1])
    return card


def write_transcripts(design: Design, run: RunDirectory) -> None:
    """`transcripts.json`: what a language model was told and answered for a few users of each job; none without one."""
    told = [
        {"seed": job.seed, "arm": job.arm, "mode": job.mode, **page}
        for job in design.jobs()
        for page in _done(run, job).get("transcript", [])
    ]
    if told:
        write_json(run.path / "transcripts.json", told)


def _done(run: RunDirectory, job: Job) -> dict[str, Any]:
    path = run.checkpoint / job.id / "done.json"
    if (done := read_sealed(path)) is None:
        raise RunDirectoryError(f"{path}: damaged; go on with resume={run.path}")
    return done


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


def _changed(path: Path, old: str, new: str) -> list[str]:
    """Top-level keys in which two configurations differ."""
    a, b = _parsed(path, old), _parsed(path, new)
    return sorted(key for key in {*a, *b} if a.get(key) != b.get(key)) or ["its layout"]
