import dataclasses

import numpy as np
import pytest
from htnet_jax.datasets.pictures import pictures

from htnet_jax.datasets import loading
from htnet_jax.errors import UserError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def arrays(data_dir):
    return loading.load("synthetic", config="tiny", data_dir=data_dir)


def test_flow_in_pixels_has_its_zero(arrays):
    inputs = np.zeros_like(arrays.flow)
    found = pictures(arrays, inputs, "release")
    assert found.centred
    assert found.mosaic is inputs
    np.testing.assert_array_equal(found.flow, arrays.flow)
    np.testing.assert_array_equal(found.clips, arrays.clips)


def test_flow_scaled_to_a_picture_has_none(arrays):
    scaled = loading.network_inputs(
        arrays, layout="none", channels=("u", "v", "strain"), scaling="minmax_255"
    )
    found = pictures(dataclasses.replace(arrays, flow=scaled), scaled, "none")
    assert not found.centred
    # The network sees the flow itself: no second picture.
    assert found.mosaic is None


def test_inputs_of_other_clips(arrays):
    with pytest.raises(ValueError, match="3 inputs for 24 clips"):
        pictures(arrays, np.zeros((3, 28, 28, 3), np.float32), "release")


def test_where_a_data_set_is_built(arrays, data_dir):
    folder = loading.built("synthetic", config="tiny", data_dir=data_dir)
    assert folder.is_dir()
    assert str(folder).startswith(data_dir)
    assert arrays.name.endswith(str(folder.relative_to(data_dir)))


def test_looking_for_a_data_set_builds_nothing(tmp_path):
    assert loading.built("synthetic", config="tiny", data_dir=str(tmp_path / "none")) is None
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match="unknown data set 'nothing'"):
        loading.built("nothing", data_dir=str(tmp_path))
