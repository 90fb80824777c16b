"""Yuan on a Ray cluster: `pip install 'yuan[ray]'`.

`Actor` is an engine on some machine of the cluster; `yuan.ray.serve` is a deployment of Ray Serve, with as many replicas as are wanted; `yuan.ray.data` sends a
corpus through the model. An answer is the same on every machine, so whichever gives it, and however often it has to be asked for, the text is one."""

from __future__ import annotations

try:
    import ray as _ray
except ImportError as error:
    raise ImportError("yuan.ray needs Ray: python3 -m pip install 'yuan[ray]'") from error

from .actor import Actor

__all__ = ["Actor"]
del _ray
