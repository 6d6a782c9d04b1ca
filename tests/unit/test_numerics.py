"""What a trajectory's bits depend on besides the trial."""

import os
import subprocess
import sys

import pytest
import torch

from ndt_ray.lanes import numerics

SAYS = """
import os, torch
{before}
import ndt_ray
from ndt_ray.lanes.numerics import fingerprint, products_stand_still
print(products_stand_still(), "moving" in fingerprint(torch.device("cpu")))
"""


def said(before: str = "") -> tuple[bool, bool]:
    """Of a process of its own, for MKL reads its setting once: whether products stand still, and what it notes."""
    env = {k: v for k, v in os.environ.items() if k != "MKL_CBWR"}
    code = SAYS.format(before=before)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    still, moving = done.stdout.split()
    return still == "True", moving == "True"


@pytest.mark.slow
def test_products_stand_still_once_the_package_is_imported():
    assert said() == (True, False)


@pytest.mark.slow
def test_a_setting_that_comes_too_late_is_in_the_fingerprint():
    # Where MKL needs none (it did on Intel), products stand still all the same: then nothing is noted.
    still, moving = said("torch.mm(torch.ones(9, 9), torch.ones(9, 9))")
    assert moving is not still


def test_products_that_move_are_found(monkeypatch):
    multiply = torch.mm

    def by_address(a, b):
        return multiply(a, b) + (a.data_ptr() % 64) * 1e-7

    monkeypatch.setattr(torch, "mm", by_address)
    assert not numerics.products_stand_still.__wrapped__()
    monkeypatch.undo()
    assert numerics.products_stand_still.__wrapped__()


@pytest.mark.parametrize("still", [True, False])
def test_the_fingerprint_tells(monkeypatch, still):
    monkeypatch.setattr(numerics, "products_stand_still", lambda: still)
    assert (" moving " in numerics.fingerprint(torch.device("cpu"))) is not still
