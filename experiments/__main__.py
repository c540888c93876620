"""``simenv run +experiment=NAME key=value ...``, also ``python run.py``: Hydra, then the experiment's module.

It does not know what an experiment does, only how one is chosen and what its end means for a shell.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach `main`, which says them in one line

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
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

_failures: list[BaseException] = []
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
    try:
        _run(config)
    except (SimenvError, KeyboardInterrupt, OmegaConfBaseException) as error:
        _failures.append(error)
        _drop_if_empty(Path(HydraConfig.get().runtime.output_dir))


def _run(config: DictConfig) -> None:
    if config.module is None:
        raise ConfigError(f"no experiment chosen: expected +experiment=NAME with one of {', '.join(experiments())}")
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    settings = {str(key): value for key, value in resolved.items()}
    from experiments.running.course import run_experiment

    settings["run_dir"] = HydraConfig.get().runtime.output_dir
    extra = [f"simenv.extra={folder}" for folder in names.extra_folders()]
    settings["command"] = shlex.join([*_called, *extra, *HydraConfig.get().overrides.task])
    folder = run_experiment(settings)
    if folder is not None:
        print(folder)
        if (page := Path(folder).absolute() / "report.html").is_file():
            print(page.as_uri())
    _drop_if_empty(Path(settings["run_dir"]))


def _drop_if_empty(folder: Path) -> None:
    """Hydra makes the run directory before anything is checked; do not leave an empty one."""
    with contextlib.suppress(OSError):
        folder.rmdir()


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
    """``resume=DIR`` also makes DIR the run directory; it must exist before Hydra would create it."""
    chosen = [a.partition("=")[2] for a in arguments if a.startswith("resume=")]
    if not chosen or chosen[-1] in ("", "null"):
        return list(arguments)
    if not Path(chosen[-1]).is_dir():
        raise RunDirectoryError(f"resume={chosen[-1]}: no such run directory")
    return [*arguments, f"hydra.run.dir={chosen[-1]}"]


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

    The last two lines on stdout are the run directory and the address of its page.

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
    _failures.clear()
    _called[:] = called.split()
    try:
        sys.argv[1:] = arguments = [_spelled_out(argument) for argument in with_resume(arguments)]
        run()
        if _failures:
            raise _failures[0]
    except KeyboardInterrupt:
        print("interrupted: checkpoint saved; go on with resume=DIR", file=sys.stderr)
        return 130
    except SimenvError as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except (HydraException, OmegaConfBaseException) as error:
        if debug:
            raise
        print(f"error: {_in_words(error, arguments)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
