"""One real Prefect server, with a database of its own, for all the flow tests."""

from collections.abc import Iterator

import pytest
from prefect.testing.utilities import prefect_test_harness


@pytest.fixture(scope="session", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=90):
        yield
