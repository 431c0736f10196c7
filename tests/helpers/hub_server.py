"""A stand-in for the Hugging Face Hub: the requests of pushing and pulling small repositories."""

import base64
import hashlib
import http.server
import json
import urllib.parse

TOKEN = "hf_" + "secret" * 6


class Hub(http.server.BaseHTTPRequestHandler):
    """Repositories by name, each a dict of files; a subclass has its own."""

    repositories: dict[str, dict[str, bytes]]
    refuse = ""  # requests whose path has this are answered by status 400, with the token

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, status, content=b"", **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _parts(self):
        """The parts of the path, of which OWNER/NAME is one."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        parts = [part for part in path.split("/") if part]
        if parts[:2] == ["api", "models"]:
            parts = parts[2:]
        return [f"{parts[0]}/{parts[1]}", *parts[2:]]

    def _failed(self):
        if self.refuse and self.refuse in self.path:
            self._answer(400, {"error": f"broken for {self.headers.get('Authorization')}"})
            return True
        return False

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._failed():
            return None
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid user token"})
        if self.path == "/api/repos/create":
            data = json.loads(body)
            name = f"{data.get('organization') or 'me'}/{data['name']}"
            self.repositories.setdefault(name, {})
            return self._answer(200, {"url": f"http://{self.headers['Host']}/{name}", "id": name})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"warnings": [], "errors": []})
        name, action, *_ = self._parts()
        if action == "preupload":
            files = [
                dict(path=f["path"], uploadMode="regular", shouldIgnore=False)
                for f in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        for line in map(json.loads, body.splitlines()):  # commit
            if line["key"] == "file":
                value = line["value"]
                self.repositories[name][value["path"]] = base64.b64decode(value["content"])
        address = f"http://{self.headers['Host']}/{name}/commit/{self._revision(name)}"
        return self._answer(200, {"commitUrl": address, "commitOid": self._revision(name)})

    def _revision(self, name):
        content = b"".join(self.repositories[name].values())
        return hashlib.sha1(content).hexdigest()

    def do_GET(self):
        if self._failed():
            return None
        name, action, revision, *path = [*self._parts(), "", ""]
        files = self.repositories.get(name)
        if files is None:
            return self._answer(404, b"", X_Error_Code="RepoNotFound")
        sha = self._revision(name)
        if revision not in ("main", sha):
            return self._answer(404, b"", X_Error_Code="RevisionNotFound")
        if action == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self._answer(200, {"id": name, "sha": sha, "siblings": siblings})
        if action == "tree":
            tree = [
                dict(type="file", path=file, size=len(content), oid="0" * 40)
                for file, content in files.items()
            ]
            return self._answer(200, tree)
        content = files.get("/".join(filter(None, path)))  # resolve
        if content is None:
            return self._answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self._answer(200, content, ETag=tag, X_Repo_Commit=sha)

    do_HEAD = do_GET
