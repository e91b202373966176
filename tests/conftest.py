"""What all tests share: one thread, fixed seeds, and a device that can be chosen.

``LMCORE_DEVICE=cuda make test`` runs the tests of the library on that device.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import hypothesis
import pytest
import torch

torch.set_num_threads(1)


BUILDS_THE_SITE = "tests/book/test_browser.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one process build the site at once, while no other one waits for it."""
    items.sort(key=lambda item: not item.nodeid.startswith(BUILDS_THE_SITE))


class TorchRandom:
    """Lets hypothesis seed torch as well, so that a failing example can be repeated."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


torch_random = TorchRandom()
hypothesis.register_random(torch_random)
hypothesis.settings.register_profile(
    "lmbh", deadline=None, derandomize=True, max_examples=50
)
hypothesis.settings.load_profile("lmbh")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device under test: ``LMCORE_DEVICE``, or the CPU."""
    chosen = torch.device(os.environ.get("LMCORE_DEVICE", "cpu"))
    try:
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        pytest.fail(f"LMCORE_DEVICE={chosen} cannot be used here: {error}")
    return chosen
