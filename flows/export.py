"""The flow `export` at the path that the deployments of a checkout name; it stands in `cosyjit.flows.export`."""

from cosyjit.flows.export import export

__all__ = ["export"]
