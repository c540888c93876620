"""Every conf/dataset/*.yaml names a loader and its own options, with the loader's defaults."""

from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest
from hydra.utils import get_method
from omegaconf import OmegaConf

from simenv.datasets import LOADERS, Dataset

FOLDER = Path(__file__).parents[3] / "conf" / "dataset"
FILES = sorted(FOLDER.glob("*.yaml"))


def test_there_is_one_file_for_each_loader_and_world_of_a_replication():
    assert {path.stem for path in FILES} == {*LOADERS, "chaney2018", "jiang2019"}


@pytest.mark.parametrize("path", [path for path in FILES if path.stem in LOADERS], ids=lambda path: path.stem)
def test_options_are_the_loaders_own_with_its_defaults(path):
    options = OmegaConf.to_container(OmegaConf.load(path))
    loader = get_method(options.pop("_target_"))
    assert loader is LOADERS[path.stem]
    defaults = {name: parameter.default for name, parameter in signature(loader).parameters.items()}
    if hasattr(loader, "passes_on_to"):
        defaults |= {field.name: field.default for field in fields(loader.passes_on_to)}
    for name in ("n_users", "n_items", "seed", "options"):
        defaults.pop(name, None)
    assert options == {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}


def test_the_synthetic_yaml_makes_a_world():
    from hydra.utils import instantiate

    world = instantiate(OmegaConf.load(FOLDER / "synthetic.yaml"), n_users=20, n_items=30, seed=1)
    assert isinstance(world, Dataset)
    assert (world.n_users, world.n_items) == (20, 30)
