"""Targets on other devices: a small service there, which runs and times the files that are sent to it."""

from secateur.targets.remote.client import remote
from secateur.targets.remote.server import Service, serve, serving

__all__ = ["Service", "remote", "serve", "serving"]
