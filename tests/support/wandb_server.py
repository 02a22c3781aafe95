"""A W&B server in memory: it answers the client's runs, files, artifacts and sweeps, and records all that they send."""

import base64
import gzip
import itertools
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

import yaml

ENTITY = "me"
KEY = "local-" + "a" * 40
NO_FEATURES = {"serverInfo": {"cliVersionInfo": {"max_cli_version": "99.0.0"}, "features": []}}
VIEWER = {"id": "VXNlcg==", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}


def node_id(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def as_json(value: Any) -> Any:
    """Return a value as the server's JSON gives it back: 1.0 becomes 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass
class Run:
    """What the server knows of one run."""

    name: str
    project: str
    fields: dict[str, Any] = field(default_factory=dict)  # displayName, groupName, jobType, tags, commit…
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None  # None while it is running

    def node(self) -> dict[str, Any]:
        def tail(lines: list) -> str:
            return json.dumps([json.dumps(line) for line in lines[-1:]])

        return {
            "id": node_id(self.name),
            "name": self.name,
            "displayName": self.fields.get("displayName") or self.name,
            "config": json.dumps(self.config),
            "summaryMetrics": json.dumps(self.summary),
            "tags": self.fields.get("tags") or [],
            "historyLineCount": len(self.history),
            "eventsLineCount": len(self.events),
            "logLineCount": 0,
            "historyTail": tail(self.history),
            "eventsTail": tail(self.events),
            "wandbConfig": json.dumps({"t": 1}),
            "sweepName": self.fields.get("sweep"),
            "project": {"id": "p", "name": self.project, "entity": {"id": "e", "name": ENTITY}},
        }


@dataclass
class Sweep:
    """A grid whose points are given to agents, one at a time; runs for which `stops` is true are stopped."""

    name: str
    config: dict[str, Any]
    stops: Callable[[Run], bool]
    given: dict[str, dict[str, Any]] = field(default_factory=dict)  # points by the names of their runs

    def commands(self, running: dict[str, Run | None]) -> list[dict[str, Any]]:
        """Return the commands for an agent that has these runs."""
        if running:
            return [{"type": "stop", "run_id": name} for name, run in running.items() if run and self.stops(run)]
        axes = {name: axis["values"] for name, axis in sorted(self.config["parameters"].items())}
        points = list(itertools.product(*axes.values()))[: self.config.get("run_cap")]
        if len(self.given) == len(points):
            return [{"type": "exit"}]
        point = dict(zip(axes, points[len(self.given)], strict=True))
        name = f"run{len(self.given)}"
        self.given[name] = point
        args = {key: {"value": as_json(value)} for key, value in point.items()}
        return [{"type": "run", "run_id": name, "program": self.config["program"], "args": args}]

    def node(self) -> dict[str, Any]:
        return {
            "id": node_id(self.name),
            "name": self.name,
            "config": yaml.safe_dump(self.config),
            "runs": {"edges": []},
        }


@dataclass
class Server:
    """The state of the server, read by tests; `refusal` is the HTTP status that it answers with, if any."""

    url: str = ""
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    stops: Callable[[Run], bool] = lambda run: False  # which runs the sweeps stop early
    runs: dict[str, Run] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)  # operations without an answer
    refusal: int | None = None

    def values(self, run_id: str, name: str) -> list[tuple[int, float]]:
        """Return the history of one metric: pairs of step and value."""
        history = self.runs[run_id].history
        return [(line["trainer/global_step"], line[name]) for line in history if name in line]

    def answer(self, operation: str, v: dict[str, Any]) -> dict[str, Any] | None:
        match operation:
            case "RunResumeStatus":
                run = self.runs.get(v["name"])
                return {"model": {"id": "p", "name": v["project"], "bucket": run.node() if run else None}}
            case "UpsertBucket":
                return self._upsert_run(v)
            case "CreateRunFiles":
                files = [{"name": f, "uploadUrl": f"{self.url}/{v['run']}/{quote(f)}"} for f in v["files"]]
                return {"createRunFiles": {"runID": node_id(v["run"]), "uploadHeaders": [], "files": files}}
            case "CreateArtifact":
                return self._create_artifact(v["input"])
            case "CreateArtifactFiles":
                files = [self._add_file(file) for file in v["input"]["artifactFiles"]]
                return {"createArtifactFiles": {"files": {"edges": files}}}
            case "CreateArtifactManifest":
                url = f"{self.url}/manifest/{v['artifactID']}" if v.get("includeUpload") else None
                manifest = {"id": "m", "file": {"id": "f", "uploadUrl": url, "uploadHeaders": []}}
                return {"createArtifactManifest": {"artifactManifest": manifest}}
            case "CommitArtifact":
                artifact = self.artifacts[int(v["artifactID"])]
                artifact["committed"] = True
                return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": artifact["digest"]}}}
            case "UpsertSweep":
                return self._create_sweep(v)
            case "SweepWithRuns":
                return {"project": {"sweep": self.sweeps[v["sweep"]].node()}}
            case "CreateAgent":
                return {"createAgent": {"agent": {"id": node_id(v["sweep"])}}}
            case "Heartbeat":
                sweep = self.sweeps[base64.b64decode(v["id"]).decode()]
                commands = sweep.commands({name: self.runs.get(name) for name in json.loads(v["runState"])})
                return {"agentHeartbeat": {"agent": {"id": v["id"]}, "commands": json.dumps(commands)}}
            case "ServerFeaturesQuery" | "ServerInfo":
                return NO_FEATURES
            case "Viewer":
                return {"viewer": VIEWER}
        self.unknown.append(operation)
        return None

    def _create_sweep(self, v: dict[str, Any]) -> dict[str, Any]:
        sweep = Sweep(f"sweep{len(self.sweeps)}", yaml.safe_load(v["config"]), self.stops)
        self.sweeps[sweep.name] = sweep
        project = {"id": "p", "name": v["projectName"], "entity": {"id": "e", "name": v["entityName"] or ENTITY}}
        warnings: list[str] = []
        return {
            "upsertSweep": {"sweep": {"name": sweep.name, "project": project}, "configValidationWarnings": warnings}
        }

    def _upsert_run(self, v: dict[str, Any]) -> dict[str, Any]:
        name = v.get("name") or base64.b64decode(v["id"]).decode()
        is_new = name not in self.runs
        run = self.runs.setdefault(name, Run(name, v.get("project") or "uncategorized"))
        run.fields |= {key: value for key, value in v.items() if value is not None}
        run.config |= json.loads(v.get("config") or "{}")
        run.exit_code = None
        return {"upsertBucket": {"bucket": run.node(), "inserted": is_new}}

    def _create_artifact(self, v: dict[str, Any]) -> dict[str, Any]:
        artifact = {
            "name": v["artifactCollectionName"],
            "aliases": [alias["alias"] for alias in v["aliases"]],
            "metadata": json.loads(v["metadata"]),
            "digest": v["digest"],
            "files": [],
            "committed": False,
        }
        self.artifacts.append(artifact)
        identity = str(len(self.artifacts) - 1)
        sequence = {"id": artifact["name"], "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": identity, "state": "PENDING", "artifactSequence": sequence}}}

    def _add_file(self, v: dict[str, Any]) -> dict[str, Any]:
        identity, name = v["artifactID"], v["name"]
        self.artifacts[int(identity)]["files"].append(name)
        url = f"{self.url}/artifact/{identity}/{quote(name)}"
        upload = {"uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
        return {"node": {"name": name, "storagePath": name, "artifact": {"id": identity}, **upload}}

    def stream(self, run_id: str, body: dict[str, Any]) -> None:
        """Store a part of a run's history: lines from the offset that the client counted."""
        run = self.runs[run_id]
        for name, chunk in (body.get("files") or {}).items():
            lines = [json.loads(line) for line in chunk["content"]] if name.endswith(("jsonl", "json")) else []
            if name == "wandb-history.jsonl":
                run.history[chunk["offset"] :] = lines
            elif name == "wandb-events.jsonl":
                run.events[chunk["offset"] :] = lines
            elif name == "wandb-summary.json":
                run.summary = lines[-1]
        if body.get("complete"):
            run.exit_code = body["exitcode"]


@contextmanager
def serve() -> Iterator[Server]:
    """Run a server on a free port of 127.0.0.1."""
    server = Server()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def _send(self, answer: Any, status: int = 200) -> None:
            body = json.dumps(answer).encode()
            self.send_response(server.refusal or status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            request = json.loads(self._body())
            with lock:
                if self.path.endswith("/graphql"):
                    match = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
                    operation = match[1] if match else ""
                    data = server.answer(operation, request.get("variables") or {})
                    unknown = {"errors": [{"message": f"no answer to {operation}"}]}
                    self._send(unknown if data is None else {"data": data})
                elif match := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                    server.stream(match[1], request)
                    self._send({})

        def do_PUT(self) -> None:
            server.blobs[self.path] = self._body()
            self._send({})

    class Listener(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exc_info()[1], ConnectionError):  # the client hangs up
                super().handle_error(request, client_address)

    httpd = Listener(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
