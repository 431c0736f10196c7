"""One prepared copy of the emoji for all data tests of a run."""

import os

import pytest


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> str:
    """A TFDS folder of this test run's own; under xdist, the workers prepare it in a race."""
    base = tmp_path_factory.getbasetemp()
    return str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tfds")
