"""The long proofs: all of them are of the second tier, but for those of the third."""

from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)  # before what is not of the wanted tier is left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("stress") is None:
            item.add_marker(pytest.mark.slow)
