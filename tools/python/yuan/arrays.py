"""NumPy, which may be missing."""

from __future__ import annotations

from ctypes import POINTER, byref, c_float, c_size_t
from typing import TYPE_CHECKING, Any

from ._library import call

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


def numpy() -> Any:
    """NumPy."""
    try:
        import numpy
    except ImportError as error:
        raise ImportError("arrays are NumPy's, which is not installed: pip install numpy, or take logits_list() or embedding_list()") from error
    return numpy


def floats(length: int, function: str, *args: Any) -> "Floats":
    """A vector that the library writes into the memory of a new array, which belongs to Python: nothing dangles when the session is closed."""
    array: "Floats" = numpy().empty(length, dtype="float32")
    needed = c_size_t()
    call(function, *args, array.ctypes.data_as(POINTER(c_float)), c_size_t(length), byref(needed))
    return array
