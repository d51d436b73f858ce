"""The installed version, from the distribution's metadata: one place to change it, pyproject.toml."""

from importlib.metadata import version

VERSION = version("finetuned-service")
