"""Options and arguments that several commands have."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token, convert

from cosyjit import settings
from cosyjit.errors import SelectionError


def _place(kind: Any, tokens: Sequence[Token]) -> Any:
    """A path; not of an empty text, which would be that of the current directory."""
    if not tokens[0].value:
        raise SelectionError("--publish: is empty; name a directory, or leave it out to publish beside the checkpoint")
    return convert(kind, tokens)


def _integer(_kind: Any, tokens: Sequence[Token]) -> int:
    """A number as it is written; cyclopts would round 1.5, and another publication than any that was meant is 2."""
    given = tokens[0].value
    if not re.fullmatch(r"[+-]?\d+", given, re.ASCII):
        raise ValueError(f'"{given}" is not an integer; give one, such as 3')
    return int(given)


Integer = Annotated[int, Parameter(converter=_integer)]
PublishOption = Annotated[Path | None, Parameter(name="--publish", converter=_place)]

StoreOption = Annotated[str | None, Parameter(name="--store", env_var=settings.STORE)]
SignOption = Annotated[Path | None, Parameter(name="--sign", env_var=settings.SIGN)]
RequireSignatureOption = Annotated[
    Path | None, Parameter(name="--require-signature", env_var=settings.REQUIRE_SIGNATURE)
]
WaitOption = Annotated[float | None, Parameter(name="--wait", env_var=settings.WAIT)]
JsonOption = Annotated[bool, Parameter(name="--json", negative="")]
NamesOption = Annotated[list[str] | None, Parameter(negative="")]
SourceArgument = Annotated[str, Parameter(name=["--source", "--model-dir", "--model_dir"])]
SourcesArgument = Annotated[list[str], Parameter(name=["--source", "--model-dir", "--model_dir"], negative="")]
