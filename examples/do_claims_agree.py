"""Do the claims of a feedback loop depend on who plays the users?

The same bias_loop three times - with embedded users, with users played by a user language model, and with a mixture in
which a tenth or more of the embedded users are answered by the language model and the difference is estimated - and
one table of the claims side by side.

    make llm-users                      # trains runs/llm-users/training/model, calibrates and plays it
    python examples/do_claims_agree.py --model runs/llm-users/training/model \
        --calibration runs/llm-users/realism/calibration.json --out runs/agree

Further arguments are overrides of +experiment=llm_users, e.g. n_seeds=5. Runs that are complete are not played again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a user language model")
    parser.add_argument("--calibration", type=Path, required=True, help="fitted by the realism experiment")
    parser.add_argument("--out", type=Path, default=Path("runs/agree"), help="where the three runs go")
    parser.add_argument("--share", type=float, default=0.3, help="of the mixture's users that the model answers for")
    options, overrides = parser.parse_known_args()

    asked = ["llm=transformers", f"llm.path={options.model.resolve()}", "llm.readout=logits"]
    calibration = options.calibration.resolve()
    kinds = {
        "embedded": ["agent=choice"],
        "user-lm": ["agent=user-lm", *asked, f"agent.calibration={calibration}"],
        "mixture": [
            "agent=mixed",
            "agent@agent.sample=user-lm",
            f"agent.share={options.share}",
            f"agent.sample.calibration={calibration}",
            "probe=agents.mixed.probe",
            *asked,
        ],
    }
    claims = {name: play(options.out / name, arguments, overrides) for name, arguments in kinds.items()}
    show(claims)
    subprocess.run(
        [sys.executable, "-m", "simenv.report", *(str(options.out / name) for name in kinds)], check=True, cwd=ROOT
    )


def play(folder: Path, arguments: list[str], overrides: list[str]) -> dict[str, dict[str, object]]:
    """One run, or what there is of it; its claims by id."""
    folder = folder.resolve()
    where = f"resume={folder}" if folder.is_dir() else f"hydra.run.dir={folder}"
    command = [sys.executable, "run.py", "+experiment=llm_users", where, *arguments, *overrides]
    subprocess.run(command, check=True, cwd=ROOT)
    return {claim["name"]: claim for claim in json.loads((folder / "claims.json").read_text())}


def show(claims: dict[str, dict[str, dict[str, object]]]) -> None:
    """Verdict and estimate of each claim under each kind of users, and how many agree."""
    kinds = list(claims)
    shared = [name for name in claims[kinds[0]] if all(name in each for each in claims.values())]
    width = max(map(len, shared), default=0)
    print(f"{'claim':{width}}" + "".join(f"{kind:>26}" for kind in kinds))
    same = 0
    for name in shared:
        found = [claims[kind][name] for kind in kinds]
        same += len({each["verdict"] for each in found}) == 1
        cells = (f"{each['verdict']} {each['estimate']:+.3f}" for each in found)
        print(f"{name:{width}}" + "".join(f"{cell:>26}" for cell in cells))
    print(f"{same} of {len(shared)} claims have the same verdict under all kinds of users")


if __name__ == "__main__":
    main()
