"""Both ways through the layers: enrobe-native's kernels for training, and torch alone."""

from collections.abc import Iterator

import pytest

from enrobe.nn import kernels


@pytest.fixture(scope="module", params=["torch", "own kernels"])
def either_way(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "own kernels":
        if kernels._kernels() is None:
            pytest.skip("enrobe-native is not installed")
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_kernels", lambda: None)
        yield
