"""The training loop every torch recommender here shares: schedule, precision, early stop, time budget, checkpoints.

It does not know what is trained: the caller gives the batches of an epoch, a loss, and, to stop early, a validation
score. Losses fall while hit rates fall, so the score is what decides, never the loss. Under `torchrun` every process
takes its share of the batches, and the first one scores, prints and writes.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from simenv.datasets.base import IntArray, LongArray
from simenv.errors import ConfigError, RunDirectoryError
from simenv.stopping import leave_if_asked
from simenv.training.histories import Histories
from simenv.training.processes import Processes, local_place

Batch = Any
GRADIENT_NORM = 1.0
VALIDATION_USERS = 4_000  # at most so many are scored; their NDCG@10 then has a standard error of about .003


MOST_EPOCHS = 1_000_000  # more would not end


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How to train. With `max_minutes` the number of steps, and so the result, depends on the machine."""

    epochs: int = 20
    batch_size: int = 32  # of a recommender: rows a step
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup: float = 0.05  # share of the run over which the learning rate rises
    max_minutes: float | None = None  # wall clock; the schedule ends with whichever of epochs and time ends first
    evaluate_every: int = 5  # epochs between two validation scores
    patience: int = 5  # validation scores without a new best before stopping
    early_stop: bool = False  # of a recommender: hold out each user's last interaction, keep the best NDCG@10 on it
    averaging: float = 0.0  # decay a step of the running average of the weights that is kept; 0 = the last ones
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "evaluate_every", "patience"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected a positive number")
        if self.epochs > MOST_EPOCHS:
            raise ConfigError(f"epochs={self.epochs}: expected at most {MOST_EPOCHS:,}")
        for name in ("warmup", "averaging"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected a share in [0, 1)")
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise ConfigError(f"max_minutes={self.max_minutes}: expected a positive number or null")


@dataclass(slots=True)
class Progress:
    """What has been done so far: enough to report it, and to go on."""

    epoch: int = 0  # epochs completed
    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # mean of each epoch
    scores: list[tuple[int, float, float]] = field(default_factory=list)  # (epoch, seconds, validation score)
    best_epoch: int = 0
    best_score: float = -math.inf


def pick_device(name: str | None) -> torch.device:
    """`auto` or None: CUDA where there is one, else the CPU; any other name as torch knows it.

    Of several processes on a machine each takes its own GPU, unless the name has a number.
    """
    if name in (None, "auto"):
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(str(name))
    except RuntimeError as error:
        raise ConfigError(f"device={name}: unknown to torch; expected auto, cpu, cuda or cuda:N") from error
    return torch.device("cuda", local_place()) if str(device) == "cuda" and local_place() else device


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run a block under its own torch seed and leave the global generators as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def autocast(device: torch.device) -> torch.autocast:
    """Mixed precision on CUDA (bfloat16 activations, float32 weights); nothing on the CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; a CPU without them takes ten times as long."""
    able = torch.cpu.get_capabilities()
    return device.type != "cpu" or any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def learning_rate(progress: float, peak: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the peak; `progress` in [0, 1]."""
    if progress < warmup:
        return peak * max(progress / warmup, 0.01)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min((progress - warmup) / (1 - warmup), 1.0))))


def held_out_ranks(
    score: Callable[[Histories, LongArray], Tensor], histories: Histories, users: LongArray, targets: NDArray[Any]
) -> LongArray:
    """Place of each target among all items that its user's history does not hold, (m,), 0 = first.

    Counted on the device of the scores.

    Args:
        score: scores (B, n_items) of a batch of users after these histories, its own to write into.
        histories: without the targets.
        users, targets: (m,) who held out what.
    """
    ranks = np.empty(len(users), np.int64)
    for start in range(0, len(users), 256):
        rows = slice(start, start + 256)
        scores = score(histories, users[rows])
        place = torch.arange(len(scores), device=scores.device)
        wanted = scores[place, torch.as_tensor(targets[rows], device=scores.device).long()]
        owners = torch.as_tensor(np.repeat(np.arange(len(scores)), histories.lengths[users[rows]]))
        seen = torch.as_tensor(np.concatenate([histories.of(user) for user in users[rows]]))
        scores[owners.to(scores.device), seen.to(scores.device).long()] = -torch.inf
        ranks[rows] = (scores > wanted[:, None]).sum(dim=1).cpu().numpy()
    return ranks


def validation_ndcg(
    score: Callable[[Histories, LongArray], Tensor],
    histories: Histories,
    users: LongArray,
    targets: IntArray,
    k: int = 10,
) -> float:
    """NDCG@k of one held-out item per user over the whole catalogue without the user's history.

    Of more than `VALIDATION_USERS` users a sample is scored, the same one every time. Arguments: see `held_out_ranks`.
    """
    if len(users) > VALIDATION_USERS:
        sample = np.sort(np.random.default_rng(0).choice(len(users), VALIDATION_USERS, replace=False))
        users, targets = users[sample], targets[sample]
    ranks = held_out_ranks(score, histories, users, targets)
    return float(np.where(ranks < k, 1 / np.log2(ranks + 2), 0).mean())


class Training:
    """One training run of one network.

    Args:
        network: the module to train, on its device.
        loss: maps a batch to (mean loss, number of samples in it).
        options: how to train.
        seed: of dropout.
        score: a validation score, higher is better; with it the weights of the best epoch are kept.
        checkpoint: a file to resume from and to write to after each epoch.
        show: print a progress bar with samples/s and the time left.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Batch], tuple[Tensor, int]],
        options: TrainingOptions,
        *,
        seed: int = 0,
        score: Callable[[], float] | None = None,
        checkpoint: Path | None = None,
        show: bool = False,
    ) -> None:
        self.network, self.options, self.seed, self.score, self.show = network, options, seed, score, show
        self.device = next(network.parameters()).device
        self.processes = Processes(self.device)
        self.loss = self.processes.parallel(network, torch.compile(loss) if options.compile else loss)
        self.checkpoint = checkpoint
        self.optimizer = torch.optim.AdamW(_groups(network, options.weight_decay), lr=options.learning_rate)
        self.progress = Progress()
        self.best: dict[str, Tensor] | None = None
        self.average: dict[str, Tensor] | None = None

    def run(self, batches: Callable[[int], Sequence[Batch] | Iterator[Batch]], steps_per_epoch: int) -> Progress:
        """Train to the end; `batches(epoch)` gives the batches of an epoch, the same ones for the same epoch.

        Raises:
            Stopped: this process is wanted to stop; what was learned in whole epochs is in the checkpoint.
        """
        processes = self.processes
        steps_per_epoch = -(-steps_per_epoch // processes.count)
        self._resume()
        with _Bar(self.show and processes.is_main) as bar:
            while self.progress.epoch < self.options.epochs and self._fraction(steps_per_epoch) < 1:
                with seeded(self.seed + 7919 * self.progress.epoch + 104_729 * processes.place, self.device):
                    self._epoch(processes.share(batches(self.progress.epoch)), steps_per_epoch, bar)
                if self._stop_early(steps_per_epoch):
                    break
                self._save()
        final = self.best if self.best is not None else self.average
        if final is not None:
            self.network.load_state_dict(final, strict=False)
        self.network.eval()
        return self.progress

    def _epoch(self, batches: Any, steps_per_epoch: int, bar: _Bar) -> None:
        progress, options = self.progress, self.options
        self.network.train()
        total, n_steps = torch.zeros((), device=self.device), 0
        started, before = time.perf_counter(), progress.seconds
        for batch in batches:
            leave_if_asked()
            fraction = self._fraction(steps_per_epoch)
            if fraction >= 1:
                break
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(fraction, options.learning_rate, options.warmup)
            with autocast(self.device):
                loss, n_samples = self.loss(batch)
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
            self.optimizer.step()
            self._follow()
            total += loss.detach()
            n_steps += 1
            progress.step += 1
            progress.samples += n_samples * self.processes.count
            progress.seconds = before + time.perf_counter() - started
            if options.max_minutes is not None:
                progress.seconds = self.processes.as_main(progress.seconds)
            bar.show(progress, self._fraction(steps_per_epoch))
        progress.epoch += 1
        progress.losses.append(float(self.processes.mean(total)) / max(n_steps, 1))

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the running average of the weights a step (Polyak and Juditsky 1992), short at first."""
        if not self.options.averaging:
            return
        parameters = {name: value for name, value in self.network.named_parameters() if value.requires_grad}
        if self.average is None:
            self.average = {name: value.detach().clone() for name, value in parameters.items()}
        decay = min(self.options.averaging, (1 + self.progress.step) / (10 + self.progress.step))
        for name, value in parameters.items():
            self.average[name].lerp_(value, 1 - decay)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within it the network has the averaged weights, where there are some."""
        if self.average is None:
            yield
            return
        last = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.average, strict=False)
        yield
        self.network.load_state_dict(last)

    def _fraction(self, steps_per_epoch: int) -> float:
        """How much of the run is over: of the steps or of the time, whichever is further on."""
        done = self.progress.step / max(1, steps_per_epoch * self.options.epochs)
        if self.options.max_minutes is not None:
            done = max(done, self.progress.seconds / (60 * self.options.max_minutes))
        return done

    def _stop_early(self, steps_per_epoch: int) -> bool:
        """Score where it is due, keep the best weights, and say whether patience has run out."""
        progress, options = self.progress, self.options
        over = progress.epoch >= options.epochs or self._fraction(steps_per_epoch) >= 1
        if self.score is None or not (over or progress.epoch % options.evaluate_every == 0):
            return False
        started = time.perf_counter()
        self.network.eval()
        with self._averaged():
            score = self.processes.as_main(self.score() if self.processes.is_main else math.nan)
            weights = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        progress.seconds = self.processes.as_main(progress.seconds + time.perf_counter() - started)
        progress.scores.append((progress.epoch, progress.seconds, score))
        if score > progress.best_score:
            progress.best_score, progress.best_epoch = score, progress.epoch
            self.best = weights
        since = sum(epoch > progress.best_epoch for epoch, _, _ in progress.scores)
        return since >= options.patience

    def _save(self) -> None:
        if self.checkpoint is None or not self.processes.is_main:
            return
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "average": self.average,
            "progress": asdict(self.progress),
            "options": asdict(self.options),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError, EOFError, OSError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RunDirectoryError(f"{self.checkpoint}: not a checkpoint of this network ({reason})") from error
        self.best, self.average = state["best"], state.get("average")  # checkpoints of older runs have no average
        self.progress = Progress(**state["progress"])


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices, none on biases and norms."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


class _Bar:
    """A rich progress bar, or nothing."""

    def __init__(self, show: bool) -> None:
        self.bar: Any = None
        if show:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:.0f} %"),
                TimeRemainingColumn(),
            )
            self.task = self.bar.add_task("training", total=1.0)

    def __enter__(self) -> _Bar:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, progress: Progress, fraction: float) -> None:
        if self.bar is not None:
            speed = progress.samples / max(progress.seconds, 1e-9)
            last = f", score {progress.scores[-1][2]:.4f}" if progress.scores else ""
            text = f"epoch {progress.epoch + 1}, {speed:,.0f} samples/s{last}"
            self.bar.update(self.task, completed=fraction, description=text)
