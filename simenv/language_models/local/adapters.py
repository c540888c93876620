"""Low-rank adapters of a local model: learnt from examples, kept under a fingerprint of all that decides them, merged.

Source: Hu et al. 2021 ("LoRA"); as a recommender's, Bao et al. 2023 ("TALLRec"). The module knows neither prompts nor
what the examples are about. torch and peft are imported only here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from simenv.errors import ConfigError, MissingExtraError
from simenv.language_models.base import Example, Tuning

if TYPE_CHECKING:
    from simenv.language_models.local.model import TransformersLocal

WEIGHTS = "adapter_model.safetensors"
Rows = tuple[list[int], list[int], int]  # tokens up to the answer, tokens of the digits, which of these is wanted
ALIKE = 0.75  # of the tokens in common make two neighbours of one family


def merged(network: Any, folder: Path) -> Any:
    """A network with the adapters of a folder merged into its weights.

    Raises:
        ConfigError: there are none, or not of this network.
    """
    peft = _peft()
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(f"llm.adapter={folder}: no adapter_config.json; expected a folder of adapters, as peft saves")
    try:
        with _quiet():
            return peft.PeftModel.from_pretrained(network, str(folder)).merge_and_unload()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"llm.adapter={folder}: not usable with this model ({reason})") from error


def tuned(local: TransformersLocal, examples: Sequence[Example], options: Tuning) -> Path:
    """The folder of adapters learnt from these examples, in a call before or now.

    An interrupted call goes on at the last whole epoch. Of two processes that want the same, one learns and the other
    waits.
    """
    import pooch  # type: ignore[import-untyped]

    if not examples:
        raise ConfigError("tuning: no examples; expected at least one")
    rows = [(*local.tokens_of(each.request), each.value - _low(each)) for each in examples]
    parent = Path(options.folder) if options.folder else Path(pooch.os_cache("simenv")) / "adapters"
    decides = {"model": local.folder.name, **asdict(options), "folder": None}
    content = json.dumps([decides, rows], sort_keys=True).encode()
    folder = parent / f"{local.folder.name}-{hashlib.sha256(content).hexdigest()[:12]}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with open(parent / f"{folder.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / WEIGHTS).is_file():
                _learn(local, rows, options, folder)
    except OSError as error:
        raise ConfigError(f"tuning.folder={parent}: cannot be written ({error.strerror or error})") from error
    return folder


def _low(example: Example) -> int:
    (integer,) = (example.request.schema or {})["properties"].values()
    return int(integer["minimum"])


def _learn(local: TransformersLocal, rows: Sequence[Rows], options: Tuning, folder: Path) -> None:
    """Train adapters, and write them whole or not at all."""
    import transformers

    from simenv.training.loop import Training, TrainingOptions, seeded

    peft = _peft()
    device = torch.device(local.device)
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(
        local.folder, local_files_only=True, dtype=torch.float32
    )
    how = peft.LoraConfig(
        r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with seeded(options.seed, device), _quiet():
        network = peft.get_peft_model(network, how).to(device)
    body, head = network.get_base_model().model, network.get_output_embeddings().weight

    def loss(batch: Sequence[Sequence[Rows]]) -> tuple[Tensor, int]:
        ids, positions, sees, ends = (each.to(device) for each in _side_by_side(batch))
        bias = torch.zeros(sees.shape, device=device).masked_fill(~sees, torch.finfo(torch.float32).min)
        states = body(input_ids=ids, attention_mask=bias[:, None], position_ids=positions, use_cache=False)
        rows = [row for family in batch for row in family]
        states = states.last_hidden_state[ends[:, 0], ends[:, 1]]
        scores = torch.stack([functional.linear(state, head[digits]) for state, (_, digits, _) in zip(states, rows)])
        found = functional.cross_entropy(scores.float(), torch.tensor([w for _, _, w in rows], device=device))
        course.append(round(found.item(), 4))
        return found, len(rows)

    families, course = _families(rows), list[float]()  # losses by step, of this call

    def batches(epoch: int) -> Iterator[list[list[Rows]]]:
        order = np.random.default_rng([options.seed, epoch, 0x10A]).permutation(len(families)).tolist()
        batch: list[list[Rows]] = []
        for family in order:
            if batch and sum(map(len, batch)) + len(families[family]) > options.batch_size:
                yield batch
                batch = []
            batch.append(families[family])
        yield batch

    checkpoint = folder.parent / f"{folder.name}.checkpoint"
    options_ = TrainingOptions(
        epochs=options.epochs, learning_rate=options.learning_rate, weight_decay=0.0, max_minutes=options.max_minutes
    )
    training = Training(network, loss, options_, seed=options.seed, checkpoint=checkpoint)
    progress = training.run(batches, sum(1 for _ in batches(0)))
    with TemporaryDirectory(dir=folder.parent) as temporary:
        whole = Path(temporary) / "adapter"
        network.save_pretrained(whole)
        told = {"examples": len(rows), "losses": progress.losses, "steps": progress.step, "seconds": progress.seconds}
        told["step_losses"] = course
        (whole / "tuning.json").write_text(json.dumps({**asdict(options), **told}, indent=1))
        whole.rename(folder)
    checkpoint.unlink(missing_ok=True)
    print(f"{local.model} tuned on {len(rows)} examples in {progress.seconds:.0f} s: {folder}", file=sys.stderr)


def _families(rows: Sequence[Rows]) -> list[list[Rows]]:
    """Neighbours whose beginnings are mostly the same, such as questions about one history."""
    families: list[list[Rows]] = []
    for row in rows:
        last = families[-1][-1][0] if families else []
        if families and _common([last, row[0]]) >= ALIKE * max(len(last), len(row[0])):
            families[-1].append(row)
        else:
            families.append([row])
    return families


def _common(texts: Sequence[Sequence[int]]) -> int:
    """How many first tokens all have in common; at least one of each is left over."""
    shortest = min(map(len, texts)) - 1
    return next((place for place in range(shortest) if len({text[place] for text in texts}) > 1), shortest)


def _side_by_side(batch: Sequence[Sequence[Rows]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Families as rows: what its members begin with in common, then the rest of each, which sees no other's.

    Returns:
        tokens and their positions (B, T), who sees whom (B, T, T), and row and place of each member's end (m, 2).
    """
    shared = [_common([tokens for tokens, _, _ in family]) for family in batch]
    widths = [n + sum(len(tokens) - n for tokens, _, _ in family) for n, family in zip(shared, batch, strict=True)]
    ids = torch.zeros((len(batch), max(widths)), dtype=torch.long)
    positions = torch.zeros_like(ids)
    sees = torch.eye(max(widths), dtype=torch.bool).repeat(len(batch), 1, 1)  # padding sees itself: no empty softmax
    ends = []
    for row, (n, family) in enumerate(zip(shared, batch, strict=True)):
        ids[row, :n], positions[row, :n] = torch.tensor(family[0][0][:n]), torch.arange(n)
        sees[row, :n, :n] = torch.ones(n, n).tril().bool()
        start = n
        for tokens, _, _ in family:
            stop = start + len(tokens) - n
            ids[row, start:stop] = torch.tensor(tokens[n:])
            positions[row, start:stop] = torch.arange(n, len(tokens))
            sees[row, start:stop, :n] = True
            sees[row, start:stop, start:stop] = torch.ones(stop - start, stop - start).tril().bool()
            ends.append((row, stop - 1))
            start = stop
    return ids, positions, sees, torch.tensor(ends)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("adapters of a local model", "torch") from error
    return peft


def _quiet() -> warnings.catch_warnings:
    """peft reads an attribute that transformers renames."""
    return warnings.catch_warnings(action="ignore", category=FutureWarning)
