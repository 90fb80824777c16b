"""A hub on this machine, of one repository `a/b`: the files of a folder."""

import hashlib
import http.server
import json
import threading


def serve(folder):
    """Serves it until this program ends. Its address."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    siblings = [
        {
            "rfilename": name,
            "size": len(data),
            # As on the hub: texts have no digest.
            "lfs": None if name.endswith(".json") else {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)},
        }
        for name, data in files.items()
    ]
    listing = json.dumps({"sha": "c0ffee", "siblings": siblings}).encode()

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            start, data = 0, files.get(self.path.removeprefix("/a/b/resolve/c0ffee/"))
            if self.path.startswith("/api/models/a/b/revision/"):
                data = listing
            status, length = (404, 0) if data is None else (200, len(data))
            asked = self.headers.get("Range", "").removeprefix("bytes=").split("-")
            if data is not None and len(asked) == 2:
                start, status = int(asked[0]), 206
                data = data[start : int(asked[1]) + 1 if asked[1] else None]
            self.send_response(status)
            self.send_header("Content-Length", str(len(data or b"")))
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{length}")
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                self.wfile.write(data or b"")
            except OSError:
                pass  # Whoever asked was killed.

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass

    server = Server(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"
