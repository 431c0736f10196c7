"""A stand-in for Google Cloud Storage: one dict of objects, seen by fsspec and over HTTP.

fsspec is how etils' paths get to `gs://`; TensorStore reads and writes arrays by HTTP requests of
its own, to `$TENSORSTORE_GCS_HTTP_URL`. As in the real one there are no folders.
"""

import datetime
import http.server
import io
import json
import threading
import urllib.parse
import zlib

from fsspec.spec import AbstractFileSystem

OBJECTS: dict[str, bytes] = {}
"""The objects by BUCKET/NAME."""


class ObjectStore(AbstractFileSystem):
    """The file system of fsspec."""

    protocol = ("gs", "gcs")
    cachable = False

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path).strip("/")
        found = {}
        for name, content in list(OBJECTS.items()):
            if name == path:
                found[name] = self.info(name)
            elif name.startswith(f"{path}/"):
                child = f"{path}/{name[len(path) + 1 :].partition('/')[0]}"
                is_file = child == name
                size = len(content) if is_file else 0
                found[child] = dict(name=child, size=size, type="file" if is_file else "directory")
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else sorted(found)

    def info(self, path, **_):
        path = self._strip_protocol(path).strip("/")
        if path in OBJECTS:
            content = OBJECTS[path]
            mtime = datetime.datetime.fromtimestamp(zlib.crc32(content))  # another one if changed
            return dict(name=path, size=len(content), type="file", mtime=mtime)
        self.ls(path)
        return dict(name=path, size=0, type="directory")

    def _open(self, path, mode="rb", **_):
        path = self._strip_protocol(path)
        if "w" in mode:
            return Written(path)
        if path not in OBJECTS:
            raise FileNotFoundError(path)
        return io.BytesIO(OBJECTS[path])

    def cp_file(self, path1, path2, **_):
        OBJECTS[self._strip_protocol(path2)] = OBJECTS[self._strip_protocol(path1)]

    def _rm(self, path):
        OBJECTS.pop(self._strip_protocol(path), None)

    def mkdir(self, path, create_parents=True, **_):
        pass

    def makedirs(self, path, exist_ok=False):
        pass

    def rmdir(self, path):
        pass


class Written(io.BytesIO):
    """An object that exists once its file is closed."""

    def __init__(self, name):
        super().__init__()
        self._name = name

    def close(self):
        if not self.closed:
            OBJECTS[self._name] = self.getvalue()
        super().close()


class Handler(http.server.BaseHTTPRequestHandler):
    """What TensorStore uses of the JSON API: get, put, list, delete."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, status, content=b"", kind="application/json", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _target(self):
        url = urllib.parse.urlsplit(self.path)
        parts = url.path.split("/b/", 1)[1].split("/o", 1)
        query = dict(urllib.parse.parse_qsl(url.query))
        name = urllib.parse.unquote(parts[1].lstrip("/")) if len(parts) > 1 else ""
        return urllib.parse.unquote(parts[0]), name, query

    def do_GET(self):
        bucket, name, query = self._target()
        if not name and "/o" not in self.path:
            return self._answer(200, json.dumps(dict(name=bucket)).encode())
        if not name:
            prefix = f"{bucket}/{query.get('prefix', '')}"
            names = sorted(n for n in OBJECTS if n.startswith(prefix))
            items = [_metadata(n) for n in names]
            return self._answer(200, json.dumps(dict(items=items)).encode())
        content = OBJECTS.get(f"{bucket}/{name}")
        if content is None:
            return self._answer(404, b"{}")
        if query.get("alt") != "media":
            return self._answer(200, json.dumps(_metadata(f"{bucket}/{name}")).encode())
        generation = {"x_goog_generation": _metadata(f"{bucket}/{name}")["generation"]}
        if span := self.headers.get("Range"):
            first, _, last = span.removeprefix("bytes=").partition("-")
            first, last = int(first), int(last or len(content) - 1)
            generation["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._answer(206, content[first : last + 1], "x", **generation)
        return self._answer(200, content, "application/octet-stream", **generation)

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        bucket, _, query = self._target()
        name = f"{bucket}/{query['name']}"
        OBJECTS[name] = content
        self._answer(200, json.dumps(_metadata(name)).encode())

    def do_DELETE(self):
        bucket, name, _ = self._target()
        OBJECTS.pop(f"{bucket}/{name}", None)
        self._answer(204)


def _metadata(name):
    bucket, _, rest = name.partition("/")
    return dict(
        kind="storage#object", bucket=bucket, name=rest, size=str(len(OBJECTS[name])),
        generation=str(1 + abs(hash(OBJECTS[name])) % 10**15), metageneration="1",
        timeCreated="2026-01-01T00:00:00Z", updated="2026-01-01T00:00:00Z",
    )  # fmt: skip


def serve(handler):
    """A server of this process and its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"
