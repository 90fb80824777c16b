"""`python -m yuan` is the program `yuan`."""

from .commands import yuan

yuan()
