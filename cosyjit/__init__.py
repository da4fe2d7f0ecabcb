"""TorchScript artifacts of CosyVoice's encoders, for the runtime that loads them.

import cosyjit

for outcome in cosyjit.export("CosyVoice-300M"):
    print(outcome.target.name, outcome.state, outcome.path)
"""

from cosyjit.errors import BuildError, CosyjitError, InputError
from cosyjit.pipeline import Artifact, Outcome, Target, build, export, plan

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "BuildError",
    "CosyjitError",
    "InputError",
    "Outcome",
    "Target",
    "build",
    "export",
    "plan",
]
