"""Yuan2.0-M32 from Python.

>>> import yuan
>>> engine = yuan.Engine(model)
>>> for text in engine.stream("春日山中 李白<sep>", 24, temperature=0.6, seed=7):
...     pass

An `Engine` is an open model; `generate`, `stream`, `chat` and `embed` are for one answer, `generate_many`, `agenerate` and `astream` for many at
once, a `Session` for what goes on. Nothing but the standard library is needed; arrays are NumPy's, where it is there."""

from ._library import live_handles, version
from .answer import Answer, Score
from .engine import Engine
from .errors import (
    ArgumentError,
    BadFileError,
    BusyError,
    CancelledError,
    ClosedError,
    ContextFullError,
    DiskFullError,
    FileError,
    ForbiddenFileError,
    GpuError,
    InternalError,
    MissingFileError,
    OutOfMemoryError,
    TimeLimitError,
    UnsupportedError,
    YuanError,
)
from .options import Options
from .sampler import Sampler, Sampling
from .session import Session
from .tokenizer import Message, Prompt, Tokenizer

__version__ = version()
Model = Engine
Error = YuanError

__all__ = [
    "Answer",
    "ArgumentError",
    "BadFileError",
    "BusyError",
    "CancelledError",
    "ClosedError",
    "ContextFullError",
    "DiskFullError",
    "Engine",
    "Error",
    "FileError",
    "ForbiddenFileError",
    "GpuError",
    "InternalError",
    "Message",
    "MissingFileError",
    "Model",
    "Options",
    "OutOfMemoryError",
    "Prompt",
    "Sampler",
    "Sampling",
    "Score",
    "Session",
    "TimeLimitError",
    "Tokenizer",
    "UnsupportedError",
    "YuanError",
    "__version__",
    "live_handles",
    "version",
]
