"""A server of the demo model, for the checks beside this file."""

import contextlib
import re
import signal
import subprocess
import threading


@contextlib.contextmanager
def serve(program, *options):
    """The address of the demo model on a free port. In the end the server must have ended as it should."""
    server = subprocess.Popen(
        [program, "serve", "--demo", "--port", "0", *options], stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        yield address(server)
    finally:
        server.send_signal(signal.SIGTERM)
        ended = server.wait(60)
    assert ended == 0, f"the server has ended with {ended}"


def address(server):
    said = []
    for line in server.stderr:
        said.append(line)
        if found := re.search(r"served at (http://[\d.]+:\d+)", line):
            # What it says later must not fill the pipe.
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return found[1]
    raise SystemExit("the server has ended:\n" + "".join(said))


def run(checks):
    for check, client in checks:
        check(client)
        print(f"{check.__name__}: passed")
