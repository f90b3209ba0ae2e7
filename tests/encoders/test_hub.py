"""Downloads by the hub's real client, from a server on this machine that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import torch
from safetensors.torch import load_file

from latentgym.encoders.hub import CONVERTER
from latentgym.encoders.published import REVISIONS
from latentgym.encoders.torchvision_fallback import ensure_torchvision

ensure_torchvision()
transformers = pytest.importorskip("transformers")
DATE = "2024-01-01T00:00:00.000Z"
PINNED = REVISIONS["facebook/vit-mae-large"]
OLDER, CONVERTED, STRANGE, UNRELATED = ("1" * 40, "2" * 40, "3" * 40, "4" * 40)
REPOSITORY = "facebook/vit-mae-large"


class Hub(ThreadingHTTPServer):
    """Files of commits, what each commit follows, and pull requests by author."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.commits: dict[str, Path] = {}
        self.parents: dict[str, str] = {}
        self.references: dict[str, str] = {}
        self.proposals: list[tuple[int, str]] = []
        self.asked: list[str] = []

    def files(self, revision: str) -> tuple[str, Path]:
        commit = self.references.get(revision, revision)
        return commit, self.commits[commit]


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.server.asked.append(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        try:
            if parts[0] == "api":
                self._send_json(self._api(parts[4:], parse_qs(url.query)))
            else:
                self._send_file(parts[3], "/".join(parts[4:]))
        except KeyError:
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _api(self, parts: list[str], query: dict[str, list[str]]) -> object:
        kind, revision = parts[0] if parts else "revision", parts[1] if len(parts) > 1 else "main"
        if kind == "discussions":
            rows = [self._proposal(number, author) for number, author in self.server.proposals]
            return {"discussions": rows, "count": len(rows), "start": 0}
        commit, folder = self.server.files(revision)
        if kind == "commits":
            row = {"authors": [], "date": DATE, "title": "", "message": ""}
            follows = self.server.parents.get(commit)
            return [{"id": commit, **row}] + ([{"id": follows, **row}] if follows else [])
        if kind == "tree":
            return [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _digest(path)}
                for path in folder.iterdir()
            ]
        return {"id": REPOSITORY, "sha": commit, "siblings": [{"rfilename": path.name} for path in folder.iterdir()]}

    def _proposal(self, number: int, author: str) -> object:
        names = {"repo": {"name": REPOSITORY, "type": "model"}, "author": {"name": author}}
        return {**names, "title": "", "num": number, "createdAt": DATE, "status": "open", "isPullRequest": True}

    def _send_json(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send_file(self, revision: str, name: str) -> None:
        commit, folder = self.server.files(revision)
        if not (folder / name).is_file():
            raise KeyError(name)
        data = (folder / name).read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{_digest(folder / name)}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def save_mae(folder: Path, seed: int, *, pickled: bool = False) -> Path:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTMAEConfig(**sizes, image_size=32, patch_size=8)
    transformers.ViTMAEModel(config).save_pretrained(folder)
    if pickled:
        weights = folder / "model.safetensors"
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
    return folder


PROGRAM = """
import json, sys
from latentgym import load_encoder
from latentgym.encoders.published import weights_are_here
from latentgym.errors import LatentGymError

found = []
for source in sys.argv[1:]:
    try:
        spec = load_encoder(source, device="cpu").spec
        here = weights_are_here(f"{spec.source}@{spec.revision}")
        found.append({"revision": spec.revision, "digest": spec.weights_digest, "here": here})
    except LatentGymError as error:
        found.append({"error": str(error)})
print(json.dumps(found))
"""


def open_encoders(hub: Hub, home: Path, *sources: str, offline: bool = False) -> list[dict[str, str]]:
    """What a fresh process, whose hub is ``hub`` and whose cache is under ``home``, says of each source."""
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, *sources],
        env={**os.environ, "NO_PROXY": "127.0.0.1", **settings},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return json.loads(found.stdout.splitlines()[-1])


def test_a_published_name_downloads_the_pinned_revision(hub, tmp_path):
    hub.commits = {PINNED: save_mae(tmp_path / "pinned", 0), OLDER: save_mae(tmp_path / "newest", 1)}
    (tmp_path / "pinned" / "pytorch_model.bin").write_bytes(b"never asked for")
    hub.references = {"main": OLDER}
    pinned, newest, named, unknown = open_encoders(
        hub, tmp_path / "home", "vit-mae-l", REPOSITORY, f"{REPOSITORY}@{PINNED}", f"{REPOSITORY}@{UNRELATED}"
    )
    assert pinned["revision"] == PINNED and pinned == named
    assert newest["revision"] == OLDER and newest["digest"] != pinned["digest"]
    assert "could not be downloaded" in unknown["error"] and "put them into one folder" in unknown["error"]
    assert not any("pytorch_model.bin" in path for path in hub.asked)
    assert open_encoders(hub, tmp_path / "home", "vit-mae-l", REPOSITORY, offline=True) == [pinned, newest]


def test_pickled_weights_are_replaced_by_the_hubs_conversion_of_that_revision(hub, tmp_path):
    hub.commits = {
        PINNED: save_mae(tmp_path / "pinned", 0, pickled=True),
        OLDER: save_mae(tmp_path / "older", 1, pickled=True),
        STRANGE: save_mae(tmp_path / "strange", 2),
        UNRELATED: save_mae(tmp_path / "unrelated", 3),
        CONVERTED: save_mae(tmp_path / "converted", 0),
    }
    # Somebody else's proposal, then the converter's for another revision, then the right one.
    hub.parents = {STRANGE: PINNED, UNRELATED: OLDER, CONVERTED: PINNED}
    hub.references = {"refs/pr/1": STRANGE, "refs/pr/2": UNRELATED, "refs/pr/3": CONVERTED}
    hub.proposals = [(1, "somebody"), (2, CONVERTER)]
    (missing,) = open_encoders(hub, tmp_path / "home", "vit-mae-l")
    assert f"{REPOSITORY}@{PINNED} holds no safetensors, and the hub no conversion of it" in missing["error"]
    hub.proposals.append((3, CONVERTER))
    (found,) = open_encoders(hub, tmp_path / "home", "vit-mae-l")
    assert found["revision"] == CONVERTED and found["here"]
    assert not any("pytorch_model.bin" in path for path in hub.asked)
    assert open_encoders(hub, tmp_path / "home", "vit-mae-l", offline=True) == [found]
