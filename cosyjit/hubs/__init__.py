"""Repositories of hubs that are written to: what stands there, uploads, one commit; a module for each hub."""
