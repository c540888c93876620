"""The command ``simenv``, also ``python -m simenv``: one word says what to do, the rest is that command's affair.

Commands are found by dotted name when called, since running experiments stands above this package.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from simenv.errors import ConfigError, SimenvError, did_you_mean
from simenv.registration import resolve

COMMANDS = {
    "run": ("experiments.__main__.main", "play an experiment; `simenv run --help` lists them"),
    "report": ("simenv.report.page.main", "rebuild the page of a run directory, or compare several"),
    "fork": ("experiments.fork.main", "play a course of a run again, with something done to it"),
    "watch": ("simenv.report.watch.main", "the page of a running experiment, written anew as rounds end"),
    "data": ("simenv.datasets.command.main", "which data sets are where; fetch or check one"),
    "bench-rl": ("experiments.rl.bench.main", "agents against baselines and bounds on the environments"),
    "serve": ("simenv.language_models.serve.main", "a local language model behind the OpenAI protocol"),
    "doctor": ("simenv.doctor.main", "versions, devices, extras, data: what a bug report needs"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Hand the arguments to the command of this name; returns the exit code.

    Args:
        arguments: the command and what follows it; None = those of this process.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if name in ("-h", "--help"):
            print("simenv COMMAND ...\n")
            print("\n".join(f"  {command:<10}{line}" for command, (_, line) in COMMANDS.items()))
            print("\n`simenv COMMAND --help` says more.")
            return 0
        if name == "--version":
            print(installed_version())
            return 0
        if name not in COMMANDS:
            known = did_you_mean(name, COMMANDS)
            raise ConfigError(f"simenv {name}: unknown command{known}; expected one of {', '.join(COMMANDS)}")
        code: int = resolve(COMMANDS[name][0])(rest)
        sys.stdout.flush()
    except SimenvError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `simenv data | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def installed_version() -> str:
    """Of the distribution; a checkout on the path has none."""
    try:
        return version("simenv")
    except PackageNotFoundError:
        return "not installed, imported from a checkout"


if __name__ == "__main__":
    sys.exit(main())
