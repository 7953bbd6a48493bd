"""A server of repositories as Hugging Face has them, on 127.0.0.1: what huggingface_hub asks, and large files on a second server."""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

TOKEN = "hf_NeverWrittenAnywhere0123456789abcd"


class Hub:
    """Repositories that a test can change; and what was asked for."""

    def __init__(self):
        self.repositories = {}
        """`ORG/REPO`: its branches by name, its files by commit, its card, and whether it wants a token."""
        self.asked = []
        """Method and path of each request, and whether it had the token."""
        self.fetched = []
        """Path and range of each request to the server of large files, and whether it had the token."""
        self.cut_after = []
        """Bytes after which the server of large files ends an answer without a word; the first for its next answer."""
        self.down = False
        """Whether the server of large files gives nothing but half of the answer."""
        self.stored = {}
        """By sha256: what the server of large files gives instead, as a damaged disk would."""
        self.url = self.store = ""

    def commit(self, name, files, branch="main", card=None, gated=False):
        """Put files into a repository: `{name: bytes}`. Returns the commit."""
        repository = self.repositories.setdefault(name, {"branches": {}, "commits": {}, "card": None, "gated": False})
        text = json.dumps([len(repository["commits"]), sorted(files)])
        commit = hashlib.sha1(f"{name} {text}".encode()).hexdigest()
        repository["commits"][commit] = dict(files)
        repository["branches"][branch] = commit
        repository["card"], repository["gated"] = card or repository["card"], gated
        return commit

    def find(self, name, revision):
        """The commit that a revision means, and its files."""
        repository = self.repositories[name]
        commit = repository["branches"].get(revision, revision)
        return commit, repository["commits"].get(commit)

    def large_files(self):
        """All files of all commits, by their sha256."""
        commits = [files for repository in self.repositories.values() for files in repository["commits"].values()]
        return {hashlib.sha256(content).hexdigest(): content for files in commits for content in files.values()}


@contextlib.contextmanager
def hub_server():
    """Yields a Hub; HF_ENDPOINT has to be its `url`."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            parts = urllib.parse.urlsplit(self.path)
            path = urllib.parse.unquote(parts.path)
            has_token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            hub.asked.append((self.command, path, has_token))
            words = path.strip("/").split("/")
            if words[:2] == ["api", "models"]:
                name, revision = "/".join(words[2:4]), "/".join(words[5:]) or "main"
                if self._is_there(name, has_token, revision):
                    self._answer(200, self._about(name, revision))
            else:
                assert words[2:3] == ["resolve"], path
                name, revision, file = "/".join(words[:2]), words[3], "/".join(words[4:])
                if self._is_there(name, has_token, revision, file):
                    self._file(name, revision, file)

        def _is_there(self, name, has_token, revision, file=None):
            repository = hub.repositories.get(name)
            if repository is None:  # the server does not tell a stranger which private repositories there are
                status = 404 if has_token else 401
                return self._refuse(status, "RepoNotFound", "Repository not found")
            if file is not None and repository["gated"] and not has_token:
                return self._refuse(401, "GatedRepo", f"Access to model {name} is restricted.")
            files = hub.find(name, revision)[1]
            if files is None:
                return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            if file is not None and file not in files:
                return self._refuse(404, "EntryNotFound", "Entry not found")
            return True

        def _about(self, name, revision):
            commit, files = hub.find(name, revision)
            siblings = []
            for file, content in files.items():
                sibling = {"rfilename": file, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
                if file.endswith((".safetensors", ".bin")):
                    sibling["lfs"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 134}
                siblings.append(sibling)
            repository = hub.repositories[name]
            about = {"id": name, "sha": commit, "siblings": siblings, "gated": "manual" if repository["gated"] else False, "tags": []}
            return about | ({"cardData": repository["card"]} if repository["card"] else {})

        def _file(self, name, revision, file):
            commit, files = hub.find(name, revision)
            content = files[file]
            self.send_response(302 if file.endswith(".safetensors") else 200)
            self.send_header("X-Repo-Commit", commit)
            if file.endswith(".safetensors"):
                digest = hashlib.sha256(content).hexdigest()
                self.send_header("X-Linked-ETag", f'"{digest}"')
                self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("Location", f"{hub.store}/{digest}?Signature=of-this-link-alone")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def _refuse(self, status, code, message):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _answer(self, status, document):
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    class Store(http.server.BaseHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def do_GET(self):
            asked = self.headers.get("Range")
            hub.fetched.append((asked, "Authorization" in self.headers))
            digest = urllib.parse.urlsplit(self.path).path.strip("/")
            whole = hub.stored.get(digest) or hub.large_files()[digest]
            begin = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
            content = whole[begin:]
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {begin}-{len(whole) - 1}/{len(whole)}")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if hub.down or hub.cut_after:
                self.wfile.write(content[: hub.cut_after.pop(0) if hub.cut_after else len(content) // 2])
                self.wfile.flush()
                self.connection.close()
                return
            self.wfile.write(content)

    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (Handler, Store)]
    hub.url, hub.store = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    hub.store = hub.store.replace("127.0.0.1", "localhost")  # another origin, as a real one has
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
