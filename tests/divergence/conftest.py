import pytest
from PIL import Image
from skimage import data

from mlscope_lab.config import load_settings


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    """The cat of scikit-image as a file."""
    path = tmp_path_factory.mktemp("pictures") / "cat.png"
    Image.fromarray(data.chelsea()).save(path)
    return str(path)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """Settings whose cache lasts for all tests, so that models are fetched and converted once."""
    return load_settings(home=tmp_path_factory.mktemp("shared-home"))
