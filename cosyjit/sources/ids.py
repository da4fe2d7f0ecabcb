"""How ids of models are written, and which hub each is of."""

import re
from typing import Final

from cosyjit.errors import SourceError
from cosyjit.sources import hugging_face, modelscope
from cosyjit.sources.hub import REVISION, Hub, Model, is_revision

HUBS: Final[tuple[Hub, ...]] = (modelscope, hugging_face)
_BY_SCHEME: Final = {hub.SCHEME: hub for hub in HUBS}

EXAMPLES: Final = ", or ".join(f"a {hub.TITLE} id such as {hub.EXAMPLE}" for hub in HUBS)
"""What a user can write, in words."""

_PART: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"


def parse(text: str) -> Model | None:
    """The model that a text such as "iic/CosyVoice-300M@v1.0" names; None if the text is not of that form.

    As file names, its parts cannot lead out of a directory. A revision may contain a /.
    """
    schemes = "|".join(f"{scheme}:" for scheme in _BY_SCHEME if scheme)
    match = re.fullmatch(rf"(?P<scheme>{schemes})?(?P<id>{_PART}/{_PART})(@(?P<revision>{REVISION}))?", text)
    if match is None or ".." in text or not is_revision(match["revision"] or "main"):
        return None
    return Model(match["id"], match["revision"], (match["scheme"] or "").removesuffix(":"))


def check_scheme(text: str) -> None:
    """Check that a text which is not an id is not meant to be one.

    Raises:
        SourceError: it begins as the ids of a hub do.
    """
    hub = _BY_SCHEME.get(text.partition(":")[0]) if ":" in text else None
    if hub is not None:
        raise SourceError(f"{text}: is not a {hub.TITLE} id; write one such as {hub.EXAMPLE}, or {hub.EXAMPLE}@main")


def hub_of(model: Model) -> Hub:
    """The hub that a model is of."""
    return _BY_SCHEME[model.scheme]
