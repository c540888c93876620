"""``simenv run +experiment=NAME key=value ...``, also ``python run.py``: Hydra, then the experiment's module.

It does not know what an experiment does, only how one is chosen and what its end means for a shell.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach `main`, which says them in one line

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.running.design import CONF, offer_recommenders
from simenv import names
from simenv.errors import ConfigError, RunDirectoryError, SimenvError, did_you_mean

HELP = """\
simenv run +experiment=NAME [key=value ...]

Experiments:
{experiments}

Keys that every experiment knows: seed, n_seeds, rounds, slate_size, n_users, n_items, dataset, agent, llm, arms, modes;
all of them with their meaning are in {config}.
  hydra.run.dir=DIR   where the run directory lies; else runs/NAME/TIME
  resume=DIR          go on with an interrupted run
  simenv.extra=FOLDER recommenders, agents, experiments of your own: a folder laid out like conf/, modules at its top
  --dry-run           users or arms that ask a language model: one prompt and the estimated cost, no question asked
  --cfg job           print the configuration instead of running it
Exit codes: 0 done, 2 bad input (one line), 3 budget exhausted, 130 interrupted; 3 and 130 leave a checkpoint."""

_failures: list[tuple[Path, Exception]] = []
_stopped: list[Path] = []
_called = ["simenv", "run"]


def experiments() -> dict[str, str]:
    """What can be run: what the first line of each yaml says, which is a comment, or else its question."""
    said = {}
    for path in names.paths("experiment").values():
        lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("# @")]
        question = next((line.partition(":")[2].strip() for line in lines if line.startswith("question:")), "")
        comment = re.split(r"; |(?<!al)\. |: python", lines[0].removeprefix("# "))[0].rstrip(".")
        said[path.stem] = comment if lines[0].startswith("# ") else question
    return said


@hydra.main(version_base=None, config_path=str(CONF), config_name="config")
def run(config: DictConfig) -> None:
    """Hand the resolved configuration to the experiment's module; a failure is kept, so that Hydra adds no words."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        _run(config)
    except KeyboardInterrupt:
        _stopped.append(folder)
        raise  # a sweep stops as well
    except BrokenPipeError:
        raise  # of the last lines: the run is finished
    except Exception as error:
        _failures.append((folder, error))
    finally:
        _drop_if_empty(folder)


def _run(config: DictConfig) -> None:
    if config.module is None:
        raise ConfigError(f"no experiment chosen: expected +experiment=NAME with one of {', '.join(experiments())}")
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    settings = {str(key): value for key, value in resolved.items()}
    from experiments.running.course import run_experiment

    settings["run_dir"] = HydraConfig.get().runtime.output_dir
    if HydraConfig.get().mode == RunMode.MULTIRUN:  # resume=SWEEP goes on with each job that has begun
        settings["resume"] = settings["resume"] if (Path(settings["run_dir"]) / "config.yaml").is_file() else None
    extra = [f"simenv.extra={folder}" for folder in names.extra_folders()]
    settings["command"] = shlex.join([*_called, *extra, *HydraConfig.get().overrides.task])
    folder = run_experiment(settings)
    if folder is not None:
        print(folder)
        if (page := Path(folder).absolute() / "report.html").is_file():
            print(page.as_uri())


def _drop_if_empty(folder: Path) -> None:
    """Hydra makes the run directory before anything is checked; do not leave an empty one, nor what is above it."""
    with contextlib.suppress(OSError):
        folder.rmdir()
        for made in [parent for parent in folder.parents if parent in _made]:
            made.rmdir()


@functools.cache
def _fresh(folder: str) -> str:
    """A folder that no other run has: this second's, numbered where two runs start in one."""
    parent = Path(folder)
    _made.extend(path.absolute() for path in (parent, *parent.parents) if not path.exists())
    parent.mkdir(parents=True, exist_ok=True)
    second = time.strftime("%Y-%m-%d_%H-%M-%S")
    for number in itertools.count(1):
        path = parent / (second if number == 1 else f"{second}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return str(path)
    raise AssertionError


_made: list[Path] = []
OmegaConf.register_new_resolver("fresh", lambda folder: _fresh(folder), replace=True)


def _spelled_out(argument: str) -> str:
    """`--dry-run` is dry_run=true; `recommenders=[a, b]` chooses arms, since the key itself holds their options;
    `recommender_llm=NAME` is Hydra's choice from the group `llm` for another place.
    """
    if argument.startswith("recommender_llm="):
        return f"llm@{argument}"
    if argument == "--dry-run":
        return "dry_run=true"
    return argument.replace("recommenders=[", "arms=[", 1) if argument.startswith("recommenders=[") else argument


def with_resume(arguments: Sequence[str]) -> list[str]:
    """``resume=DIR`` also makes DIR the run directory, or in a sweep the sweep's; it must exist before Hydra would
    create it. DIR may have any name: it is quoted for Hydra here.
    """
    chosen = [a.partition("=")[2] for a in arguments if a.startswith("resume=")]
    if not chosen or chosen[-1] in ("", "null"):
        return list(arguments)
    folder = chosen[-1]
    if len(folder) > 1 and folder[0] == folder[-1] and folder[0] in "'\"" and not Path(folder).exists():
        folder = folder[1:-1]
    if not Path(folder).is_dir():
        raise RunDirectoryError(f"resume={folder}: no such run directory")
    kind = "sweep" if {"-m", "--multirun"} & set(arguments) else "run"
    others = [a for a in arguments if not a.startswith("resume=")]
    return [*others, f"resume={_quoted(folder)}", f"hydra.{kind}.dir={_quoted(folder)}"]


def _quoted(text: str) -> str:
    """As a string of Hydra's grammar, in which nothing has a meaning of its own."""
    text = re.sub(r"(\\+)(?='|$)", r"\1\1", text).replace("'", "\\'").replace("${", "\\${")
    return f"'{text}'"


def with_extra(arguments: Sequence[str]) -> list[str]:
    """``simenv.extra=FOLDER`` lets names and modules be found in FOLDER too (`simenv.names`); Hydra searches it."""
    for argument in arguments:
        if argument.startswith("simenv.extra="):
            names.add_folder(argument.partition("=")[2])
    found = ", ".join(f'"file://{folder}"' for folder in names.extra_folders())
    rest = [argument for argument in arguments if not argument.startswith("simenv.extra=")]
    return [*rest, f"hydra.searchpath=[{found}]"] if found else rest


def _in_words(error: Exception, arguments: Sequence[str]) -> str:
    """What Hydra found wrong, with the name that was probably meant."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        known = sorted(error.options)
        return f"{group}={name}: unknown{did_you_mean(name, known)}; expected one of {', '.join(known)}"
    found = re.match(r"Could not override '([^']+)'", str(error))
    if isinstance(error, ConfigCompositionException) and found:
        parent, _, name = found[1].rpartition(".")
        below = _options_below(parent, [a for a in arguments if not a.startswith(f"{found[1]}=")])
        for record, options in below.items() if parent else ():
            if isinstance(options, dict) and name in options:
                return f"{found[1]}: unknown option; it is {parent}.{record}.{name}"
        known = sorted(below)
        listed = f"; expected one of {', '.join(known)}" if parent and known else ""
        return f"{found[1]}: unknown option{did_you_mean(name, known)}{listed}"
    return " ".join(str(error).split())


def _options_below(parent: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The options at this place of the configuration; none where these arguments make no configuration either."""
    try:
        with hydra.initialize_config_dir(str(CONF), version_base=None):
            config = hydra.compose("config", [a for a in arguments if not a.startswith("-")])
        below = OmegaConf.select(config, parent) if parent else config
    except (HydraException, OmegaConfBaseException):
        return {}
    found = OmegaConf.to_container(below, resolve=False) if isinstance(below, DictConfig) else {}
    return {str(name): value for name, value in found.items()} if isinstance(found, dict) else {}


def main(arguments: Sequence[str] | None = None, called: str = "simenv run") -> int:
    """Play an experiment; the exit code is 0 done, 2 bad input, 3 budget exhausted, 130 interrupted.

    The last two lines on stdout are the run directory and the address of its page; after a sweep's runs follows the
    address of the sweep's own page.

    Args:
        arguments: what follows the command; None = those of this process.
        called: the command as the run card tells it.
    """
    debug = os.environ.get("SIMENV_DEBUG") == "1"
    try:
        arguments = with_extra(sys.argv[1:] if arguments is None else arguments)
        offer_recommenders()
    except SimenvError as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    if {"-h", "--help"} & set(arguments):
        width = max(map(len, experiments()))
        listed = "\n".join(f"  {name:<{width}}  {line}" for name, line in experiments().items())
        print(HELP.format(experiments=listed, config=CONF / "config.yaml"))
        return 0
    _fresh.cache_clear()
    _failures.clear()
    _stopped.clear()
    _called[:] = called.split()
    try:
        with _stop_on_terminate():
            sys.argv[1:] = arguments = [_spelled_out(argument) for argument in with_resume(arguments)]
            run()
    except KeyboardInterrupt:
        folder = next((path for path in _stopped if path.is_dir()), None)
        rest = "nothing was written" if folder is None else f"checkpoint saved; go on with resume={folder}"
        _say(f"interrupted: {rest}")
        return 130
    except BrokenPipeError:  # nobody reads what is printed at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        _failures.append((Path(), error))
    if not _failures:
        return 0
    if debug:
        raise _failures[0][1]
    for where, failure in _failures:
        _say(f"error: {f'{where}: ' if len(_failures) > 1 else ''}{_in_a_line(failure, arguments)}")
    return max(failure.exit_code if isinstance(failure, SimenvError) else 2 for _, failure in _failures)


def _in_a_line(error: Exception, arguments: Sequence[str]) -> str:
    """What went wrong, and what to do about it."""
    if isinstance(error, SimenvError):
        return " ".join(str(error).split())
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _in_words(error, arguments)
    said = " ".join(str(error).split())
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename and error.strerror else ""
        remedy = "; free some and go on with resume=DIR" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{where}{error.strerror or said}{remedy}"
    if isinstance(error, MemoryError):
        return f"out of memory ({said or 'no size told'}); expected fewer users, items or workers"
    return (
        f"unforeseen {type(error).__name__}: {said}; a fault of simenv, or of a class it was given: "
        "SIMENV_DEBUG=1 shows where"
    )


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # a closed pipe
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _stop_on_terminate() -> Iterator[None]:
    """SIGTERM is Ctrl-C, whatever is going on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
