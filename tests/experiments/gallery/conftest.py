"""Each world of the gallery is read once, by the first test that asks for it."""

from functools import cache

import pytest

from tests.experiments.gallery.pipeline import CONTROL, read_world
from tests.experiments.gallery.worlds import WORLDS


@pytest.fixture(scope="session")
def reading(tmp_path_factory):
    """Name of a world -> what the pipeline makes of it."""

    @cache
    def read(name):
        more = CONTROL if name == "Saturation" else ""
        cycles = 4 if name == "Crossing" else 2
        return read_world(WORLDS[name](), tmp_path_factory.mktemp(name), more, cycles=cycles)

    return read
