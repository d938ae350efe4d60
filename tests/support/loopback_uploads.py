"""What the hub on loopback answers to those who upload: repositories, large files, commits."""

import base64
import hashlib
import json
import re
import time
from urllib.parse import unquote

from support.loopback_answers import (
    SMALL_FILES,
    TOKEN,
    Fault,
    Handler,
    RefusedError,
    Request,
    git_oid,
    sha256,
)

READER = "hf_SecretOfAReader"
"""A token that may read, and not write."""


class UploadHandler(Handler):
    """Also takes what is uploaded; only with TOKEN."""

    def do_PUT(self):  # noqa: N802
        hub = self.server.hub
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.request_line = Request("PUT", unquote(self.path), self.headers)
        hub.requests.append(self.request_line)
        self.fault = hub.fault(f"PUT {unquote(self.path)}")
        oid = self.path.rpartition("/")[2]
        if self.fault is not None:
            self.answer(self.fault.status, b"", {})
        elif sha256(data) == oid:
            hub.objects[oid] = data
            self.fault = Fault()
            self.answer(200, b"", {})
        else:
            self.fault = Fault()
            self.answer(400, b"", {})

    def route(self, url, form: str) -> None:
        path = unquote(url.path)
        repository = r"datasets/(?P<name>[^/]+/[^/]+?)"
        if self.server.hub.has_xet:
            if re.fullmatch(rf"/api/{repository}/xet-write-token/main", path):
                self.xet_token()
                return
            if self.command == "POST" and path.startswith(("/v1/", "/v2/")):
                self.xet_storage(path)
                return
        if self.command != "POST":
            super().route(url, form)
            return
        self.may_write()
        if path == "/api/repos/create":
            self.create(json.loads(form))
        elif path == "/api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif re.fullmatch(rf"/api/{repository}/preupload/main", path):
            name = re.fullmatch(rf"/api/{repository}/preupload/main", path)["name"]
            self.answer_json({"files": [self.mode(name, f) for f in json.loads(form)["files"]]})
        elif found := re.fullmatch(rf"/{repository}\.git/info/lfs/objects/batch", path):
            self.batch(json.loads(form)["objects"])
        elif found := re.fullmatch(rf"/api/{repository}/commit/main", path):
            self.commit(found["name"], [json.loads(line) for line in form.splitlines()])
        else:
            super().route(url, form)

    def xet_token(self) -> None:
        """Tell where the storage is, and give a token for it."""
        until = int(time.time()) + 3600
        self.answer_json({"accessToken": "xet", "exp": until, "casUrl": self.server.hub.endpoint})

    def xet_storage(self, path: str) -> None:
        """Take chunks ("xorbs") and lists of them ("shards"), in the first version of the API."""
        if found := re.fullmatch(r"/v1/xorbs/default/([0-9a-f]{64})", path):
            self.server.hub.xorbs[found[1]] = int(self.headers["Content-Length"])
            self.answer_json({"was_inserted": True})
        elif path == "/v1/shards":
            self.answer_json({"result": 1})
        else:
            raise RefusedError(404, "", "There is no such thing.")

    def may_write(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            raise RefusedError(401, "", "Invalid username or password.")
        if token != TOKEN:
            raise RefusedError(403, "", "You don't have the rights to write there.")

    def create(self, asked: dict) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.hub.endpoint}/datasets/{name}"
        if f"datasets/{name}" in self.server.hub.repositories:
            taken = {"error": "You already created this dataset repo", "url": url}
            self.answer(409, json.dumps(taken).encode(), {})
            return
        self.server.hub.publish(name, {".gitattributes": b"*.parquet filter=lfs\n"})
        self.server.hub.visibility[name] = asked.get("visibility")
        self.answer_json({"url": url, "name": name})

    def mode(self, name: str, file: dict) -> dict:
        repository = self.server.hub.repositories[f"datasets/{name}"]
        path = file["path"]
        there = repository.commits[repository.head].get(path)
        mode = "regular" if path.endswith(SMALL_FILES) else "lfs"
        oid = None
        if there is not None:
            oid = git_oid(there) if mode == "regular" else sha256(there)
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def batch(self, objects: list[dict]) -> None:
        hub = self.server.hub
        answers = []
        for asked in objects:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in hub.objects:
                href = f"{hub.endpoint}/lfs/{asked['oid']}"
                answer["actions"] = {"upload": {"href": href, "header": {}}}
            answers.append(answer)
        self.answer_json({"transfer": "basic", "objects": answers})

    def commit(self, name: str, lines: list[dict]) -> None:
        hub = self.server.hub
        repository = hub.repositories[f"datasets/{name}"]
        files = dict(repository.commits[repository.head])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = hashlib.sha1(repr((len(repository.commits), lines)).encode()).hexdigest()
        hub.publish(name, files, commit=oid)
        url = f"{hub.endpoint}/datasets/{name}/commit/{oid}"
        self.answer_json({"success": True, "commitOid": oid, "commitUrl": url})
