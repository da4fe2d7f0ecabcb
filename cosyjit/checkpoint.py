"""A model directory with its configuration read: which family it is, and the options of each component."""

from dataclasses import dataclass
from typing import Any

from cosyjit.config import Config
from cosyjit.errors import ConfigError
from cosyjit.families import Component, Family, family_of
from cosyjit.source import Source


@dataclass(frozen=True)
class Checkpoint:
    """A model directory, its configuration read and its family known."""

    source: Source
    config: Config
    family: Family

    def options(self, component: Component) -> dict[str, Any]:
        """The options that the configuration gives the component's encoder, resolved.

        Raises:
            ConfigError: the component is missing, is of another class, or cannot be resolved.
        """
        instance = self.config.instance(component.node)
        if instance.class_name != component.class_name:
            raise ConfigError(
                f"{self.source.config}: {component.node} is a {instance.class_name}; supported: {component.class_name}"
            )
        return instance.options


def open_checkpoint(source: Source) -> Checkpoint:
    """Read the configuration of a model directory.

    Raises:
        ConfigError: it is no YAML, or its language model is of an unknown class.
    """
    config = Config.read(source.config)
    return Checkpoint(source, config, family_of(config.class_of("llm"), str(source.config)))
