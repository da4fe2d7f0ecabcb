"""Opens a model directory: reads its configuration, and identifies its family."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cosyjit.configuration.config import Config
from cosyjit.errors import ConfigError
from cosyjit.families import LANGUAGE_MODEL, Component, Family, family_by_components, family_of, nodes_of_components
from cosyjit.sources.source import Source


@dataclass(frozen=True)
class Checkpoint:
    """A model directory with its configuration and its family."""

    source: Source
    config: Config
    family: Family

    def has(self, component: Component) -> bool:
        """Whether the configuration has the node of a component."""
        return self.config.has(component.node)

    def check_nodes(self, components: Iterable[Component]) -> None:
        """Check that the configuration has the nodes of components; published files may lack some.

        Raises:
            ConfigError: nodes are missing.
        """
        missing = [part for part in dict.fromkeys(components) if not self.has(part)]
        if missing:
            nodes = " and ".join(dict.fromkeys(self._missing_node(part.node) for part in missing))
            parts = ", ".join(part.name for part in missing)
            usual = [part for part in self.family.components if not part.on_request]
            present = [f"--component {part.name}" for part in usual if self.has(part)]
            hint = f"{' '.join(present)} exports what there is" if present else "restore the published file"
            raise ConfigError(f"{self.source.config}: has no node {nodes}, which {parts} would be made from; {hint}")

    def _missing_node(self, path: str) -> str:
        """The uppermost node on a path that is missing."""
        parts = path.split(".")
        paths = [".".join(parts[: length + 1]) for length in range(len(parts))]
        return next(path for path in paths if not self.config.has(path))

    def options(self, component: Component) -> dict[str, Any]:
        """The options of the component's encoder in the configuration, resolved.

        Raises:
            ConfigError: the node is missing, has another class, or cannot be resolved.
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
        ConfigError: the configuration is not YAML, or does not identify the family.
    """
    config = Config.read(source.config)
    return Checkpoint(source, config, _family(config))


def _family(config: Config) -> Family:
    if config.has(LANGUAGE_MODEL):
        return family_of(config.class_of(LANGUAGE_MODEL), config.where)
    nodes = [node for node in nodes_of_components() if config.has(node)]
    # What is on request does not tell the family where something else does: it may be another class's in a fork.
    nodes = nodes or [node for node in nodes_of_components(on_request=True) if config.has(node)]
    classes = {node: config.class_of(node) for node in nodes}
    return family_by_components(classes, config.where)
