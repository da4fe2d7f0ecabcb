"""How estimators run in tests: as the runtime runs them, and on one thread."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _inference(one_thread: None) -> Iterator[None]:  # noqa: ARG001
    with torch.inference_mode():
        yield
