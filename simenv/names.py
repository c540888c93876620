"""What can be named in a configuration: a yaml for each name, in ``conf/<group>/`` and in folders of the user's own.

A folder of the user's own is laid out like ``conf/`` - ``recommender/recent.yaml``, ``agent/shy.yaml``,
``experiment/mine.yaml`` - with the modules that its yamls name at its top (``recent.py``). ``simenv.extra=FOLDER``
on the command line adds one, or the environment variable ``SIMENV_EXTRA``, several with the path separator between
them; processes started from here inherit it. The module does not know what is named, nor reads a yaml.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from simenv.errors import ConfigError, did_you_mean

EXTRA = "SIMENV_EXTRA"
_ROOT = Path(__file__).resolve().parents[1]
# At the top of a checkout, where it is edited; inside a package in an installed copy.
CONF = _ROOT / "experiments" / "conf" if (_ROOT / "experiments" / "conf").is_dir() else _ROOT / "conf"


def extra_folders() -> list[Path]:
    """The user's own folders; their modules can be imported from here on.

    Raises:
        ConfigError: one of them is no folder.
    """
    folders = [Path(text).resolve() for text in os.environ.get(EXTRA, "").split(os.pathsep) if text]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"simenv.extra={folder}: no such folder")
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return folders


def add_folder(folder: Path | str) -> None:
    """Let names and modules be found in this folder too."""
    known = [text for text in os.environ.get(EXTRA, "").split(os.pathsep) if text]
    os.environ[EXTRA] = os.pathsep.join(dict.fromkeys([*known, str(Path(folder).resolve())]))
    extra_folders()


def extra_modules() -> set[str]:
    """Names of the modules and packages at the top of the user's own folders."""
    return {
        path.stem
        for folder in extra_folders()
        for path in folder.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }


def paths(group: str) -> dict[str, Path]:
    """The yaml of every name in a group, sorted by name.

    Raises:
        ConfigError: two folders have the same name.
    """
    found: dict[str, Path] = {}
    for folder in (CONF, *extra_folders()):
        for path in sorted((folder / group).glob("*.yaml")):
            if path.stem in found:
                raise ConfigError(f"{path}: {group} '{path.stem}' is the name of {found[path.stem]}; expected another")
            found[path.stem] = path
    return dict(sorted(found.items()))


def find(group: str, name: object) -> Path:
    """The yaml of one name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    known = paths(group)
    if name not in known:
        raise ConfigError(
            f"{group}={name}: unknown{did_you_mean(name, known)}; expected one of {', '.join(known)}, "
            "or _target_ with a path"
        )
    return known[str(name)]
