"""An HTTP server on this machine that serves files, and can fail in several ways."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

CONTENT = bytes(range(256)) * 40


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files`; /cut/ closes the connection after half of the remaining bytes, /plain/ ignores Range."""

    files: dict[str, bytes]
    requests: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.requests.append((self.path, self.headers["Range"]))
        kind, _, name = self.path.strip("/").partition("/")
        content = self.files.get(name)
        if content is None or kind == "gone":
            self.send_error(404)
            return
        if kind == "wrong":
            content = b"?" * len(content)
        start = 0
        if self.headers["Range"] and kind != "plain":
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        remaining = content[start:]
        self.wfile.write(remaining[: len(remaining) // 2] if kind == "cut" else remaining)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve() -> Iterator[tuple[str, type[Server]]]:
    """Run the server; yield its address, and the handler class with its files and requests."""
    handler = type("Handler", (Server,), {"files": {"file.bin": CONTENT}, "requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", handler
        running.shutdown()
        thread.join()
