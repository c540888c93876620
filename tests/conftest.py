"""One thread for each test process, and worlds that several test modules share."""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before NumPy and torch read it: the processes of -n 2 share two cores

import pytest
from hypothesis import settings

from experiments.running.design import offer_recommenders
from simenv.datasets import Dataset
from simenv.datasets.synthetic import synthetic

settings.register_profile("simenv", deadline=None)  # a first call may compile a kernel
settings.load_profile("simenv")
offer_recommenders()  # for tests that compose a configuration themselves


@pytest.fixture(scope="session")
def world() -> Dataset:
    """A small synthetic world: 60 users, 80 items."""
    return synthetic(n_users=60, n_items=80, seed=3)
