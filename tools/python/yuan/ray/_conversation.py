"""A session that is kept under a name: open, or in a file."""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path
from typing import Optional

from ..engine import Engine
from ..errors import YuanError
from ..session import Session

_log = logging.getLogger("ray.serve")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


class Conversation:
    """What was read and said stays in a session, so that only what is new is read. It is a matter of time alone: an answer depends on the tokens before it, and is the
    same where the session was lost. So any machine may go on with it, and the file that was written last is good enough."""

    def __init__(self, engine: Engine, folder: Path, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"the session's name is {name[:100]!r}: give up to 100 letters, digits, '-', '_' and '.', which do not begin with '.'")
        self._engine, self._file = engine, folder / f"{name}.session"
        self._spoken = threading.Lock()
        self._session: Optional[Session] = None
        self._is_dismissed = False

    def take(self) -> Optional[Session]:
        """The session, for one answer, until `give_back`. None while another answer is being given in it."""
        if not self._spoken.acquire(blocking=False):
            return None
        try:
            self._is_dismissed = False
            if self._session is None:
                self._session = self._opened()
            return self._session
        except BaseException:
            self._spoken.release()
            raise

    def give_back(self) -> None:
        """Ends the turn."""
        self._spoken.release()
        if self._is_dismissed:
            self.sleep()

    def sleep(self) -> None:
        """Writes the session to its file and closes it: at once, or when the answer has ended that is being given in it."""
        self._is_dismissed = True
        if not self._spoken.acquire(blocking=False):
            return
        try:
            session, self._session = self._session, None
            if session is not None and not session.closed:
                with session:
                    session.save(self._file)
        except YuanError as error:
            _log.warning("the session %s is not saved, and will be read again: %s", self._file, error)
        finally:
            self._spoken.release()

    def __del__(self) -> None:
        # Ray Serve calls it, too, when others are wanted more.
        if "_is_dismissed" in self.__dict__:
            self.sleep()

    def _opened(self) -> Session:
        if self._file.exists():
            try:
                return self._engine.restore(self._file)
            except YuanError as error:
                _log.warning("the session %s is read again: %s", self._file, error)
        return self._engine.session()
