"""The Prefect flow, and what serves and deploys it."""
