"""The four modules stand beside this directory; a few words serve every test."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random numbers."""
    torch.manual_seed(0)


def shaken(module, scale=0.1):
    """The module with random, non-zero, non-symmetric parameters: on tidy ones a wrong gradient can hide."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def pytest_configure(config):
    """torch's own forward-mode rules use a function that torch itself calls deprecated."""
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script` is deprecated:DeprecationWarning")
