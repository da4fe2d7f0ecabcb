"""Options and arguments that several commands have."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cosyjit import settings

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
