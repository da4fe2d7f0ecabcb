"""What is selected of a family, in names."""

import pytest

from cosyjit.errors import SelectionError
from cosyjit.families import Family
from cosyjit.selection import select


def pairs(
    family: Family, components: list[str] | None = None, precisions: list[str] | None = None
) -> list[tuple[str, str]]:
    """The names of what is selected."""
    return [(component.name, precision.name) for component, precision in select(family, components, precisions)]


def refusal(family: Family, components: list[str] | None = None, precisions: list[str] | None = None) -> str:
    """The line with which a selection is refused."""
    with pytest.raises(SelectionError) as error:
        select(family, components, precisions)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)
