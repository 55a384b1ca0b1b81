"""One miniature run of the whole recipe, shared by the tests of this folder."""

import pytest

from skyreels_rt.training.recipe import RECIPES
from skyreels_rt.training.stages import run_recipe


@pytest.fixture(scope="session")
def miniature():
    return RECIPES["miniature"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory, miniature):
    """Folder of a finished miniature run."""
    folder = tmp_path_factory.mktemp("miniature")
    run_recipe(miniature, folder)
    return folder
