"""An engine in the place that Ray gives it."""

from __future__ import annotations

from typing import Any, Dict, Mapping

import ray
import ray.util

from ..engine import Engine
from ..errors import FileError


def allotted(resources: Mapping[str, float], gpus: int) -> Dict[str, Any]:
    """The settings of an engine that keeps to what Ray has reserved: as many threads as CPUs, its memory, its GPU. What was not reserved stays as ever, but for GPUs, which are
    those of others then.

    >>> allotted({"CPU": 4.0, "memory": 8e9}, 0)
    {'gpu': 'off', 'threads': 4, 'memory': '8000000000'}
    """
    settings: Dict[str, Any] = {"gpu": "auto" if gpus else "off"}
    if "CPU" in resources:
        settings["threads"] = max(1, int(resources["CPU"]))
    if "memory" in resources:
        settings["memory"] = str(int(resources["memory"]))
    return settings


def opened(model: str, settings: Mapping[str, Any]) -> Engine:
    """The model, opened with these settings and otherwise with those of its place. An error says on which machine it was."""
    place = allotted(ray.get_runtime_context().get_assigned_resources(), len(ray.get_gpu_ids()))
    try:
        return Engine(model, **{**place, **settings})
    except FileError as error:
        error.args = (f"{error}; this is the machine {ray.util.get_node_ip_address()}: a model lies at the same path on every machine of the cluster",)
        raise
