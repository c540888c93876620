"""Item vectors: what a pretrained language model makes of an item's title, genres and description.

The texts go through the model once; a text's vector is the mean of what two of its layers, in the middle and at two
thirds, say at its tokens. The vectors of a catalogue are kept in the user's cache. The module does not know what they
are features of. torch and transformers are imported only here, and only to encode.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from simenv.datasets.base import Catalog, FloatArray
from simenv.errors import ConfigError, MissingExtraError
from simenv.language_models.local.gguf_file import PACKAGED, model_folder

DEPTHS = (1 / 2, 2 / 3)  # of the layers that are read
TEXT_LENGTH = 300  # characters of a description
BATCH = 32


def item_vectors(catalog: Catalog, source: str | Path, dims: int) -> FloatArray:
    """Vectors of a catalogue's items, (n_items, dims): leading principal components, rows of unit length.

    Args:
        catalog: whose items.
        source: ``smollm2``; a GGUF file or a folder of `save_pretrained` of any causal model; or an ``.npy`` file of
            vectors made elsewhere, (n_items, any).
        dims: how many; columns are 0 where the vectors have fewer.

    Raises:
        ConfigError: no model or vectors there, or of another number of items.
        MissingExtraError: torch or transformers is not installed.
    """
    raw = _raw(catalog, source).astype(np.float64)
    if raw.ndim != 2 or len(raw) != catalog.n_items or not np.isfinite(raw).all():
        raise ConfigError(
            f"item_vectors={source}: shape {raw.shape}, or not finite; expected vectors of {catalog.n_items} items"
        )
    raw = raw - raw.mean(axis=0)
    raw /= np.maximum(raw.std(axis=0), 1e-9)  # a few of a model's dimensions are a hundred times as wide as the others
    left, values, _ = np.linalg.svd(raw, full_matrices=False)
    found = np.zeros((catalog.n_items, dims))
    kept = (left * values)[:, :dims]
    found[:, : kept.shape[1]] = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12)
    return found.astype(np.float32)


def texts_of(catalog: Catalog) -> list[str]:
    """What is encoded of each item."""
    texts = catalog.texts or ("",) * catalog.n_items
    return [
        f'The title "{title}"{_in_brackets(catalog, row)} is about {text[:TEXT_LENGTH]}'.strip()
        for row, (title, text) in enumerate(zip(catalog.titles, texts, strict=True))
    ]


def _in_brackets(catalog: Catalog, row: int) -> str:
    names = [catalog.genre_names[genre] for genre in np.flatnonzero(catalog.genres[row])]
    return f" ({', '.join(names)})" if names else ""


def _raw(catalog: Catalog, source: str | Path) -> FloatArray:
    import pooch  # type: ignore[import-untyped]

    path = Path(source)
    if str(source) not in PACKAGED and not path.exists():
        raise ConfigError(f"item_vectors={source}: no such file or folder; expected one, or {', '.join(PACKAGED)}")
    if path.suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    folder = model_folder(source).resolve()
    texts = texts_of(catalog)
    changed = sorted((file.name, file.stat().st_mtime_ns) for file in folder.iterdir() if file.is_file())
    key = hashlib.sha256(repr((str(folder), changed, DEPTHS, texts)).encode()).hexdigest()[:16]
    kept = Path(pooch.os_cache("simenv")) / "item-vectors" / f"{key}.npy"
    if not kept.is_file():
        found = encode(texts, folder)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, suffix=".npy", delete=False) as partial:
            np.save(partial, found)
        os.replace(partial.name, kept)
    return np.asarray(np.load(kept, allow_pickle=False))


def encode(texts: Sequence[str], folder: Path) -> FloatArray:
    """Mean hidden states of texts at `DEPTHS`, one after another: (n, 2 * hidden size)."""
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError("item_vectors", "torch") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        network = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:
        raise ConfigError(f"item_vectors={folder}: no usable model ({str(error).splitlines()[0]})") from error
    ids = [tokenizer.encode(text)[: network.config.max_position_embeddings] for text in texts]
    layers = [round(depth * network.config.num_hidden_layers) for depth in DEPTHS]
    found = np.zeros((len(texts), len(layers) * network.config.hidden_size), np.float32)
    order = np.argsort([len(row) for row in ids], kind="stable")
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        width = max(2, *(len(ids[row]) for row in rows))
        tokens, mask = torch.zeros((len(rows), width), dtype=torch.long), torch.zeros((len(rows), width))
        for place, row in enumerate(rows):
            tokens[place, : len(ids[row])] = torch.tensor(ids[row])
            mask[place, : len(ids[row])] = 1.0
        with torch.inference_mode():
            states = network(input_ids=tokens, attention_mask=mask, output_hidden_states=True).hidden_states
        mask[:, 0] = 0.0  # the first token's state says that it is first, and little else
        weight = (mask / mask.sum(dim=1, keepdim=True).clamp(min=1.0))[:, :, None]
        found[rows] = torch.cat([(states[layer] * weight).sum(dim=1) for layer in layers], dim=1).numpy()
    return found
