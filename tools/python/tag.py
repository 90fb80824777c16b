"""Hatchling's hook: a wheel with a library has the name of its system, which `build.py` has found out, and is the same for every Python 3."""

import os
from typing import Any, Dict

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Tag(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: Dict[str, Any]) -> None:
        build_data["tag"] = f"py3-none-{os.environ['YUAN_WHEEL_PLATFORM']}"
        build_data["pure_python"] = False
