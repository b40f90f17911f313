"""A stub of the W&B server: the part of its GraphQL API that `wandb.Api` needs to list and read runs."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from test_training import leveldb_records

ENTITY, PROJECT = "lab", "distill"
Run = dict[str, Any]


def told(folder: Path) -> Run:
    """What a server would hold of the offline run, or runs, in a folder: they read as one that was resumed
    online, where `_step` goes on counting."""
    from wandb.proto import wandb_internal_pb2

    run: Run = {"config": {}, "summary": {}, "history": [], "state": "crashed", "files": {}}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        before = len(run["history"])
        for data in leveldb_records(path.read_bytes()[7:]):
            record: Any = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
            record.ParseFromString(data)
            if record.HasField("run"):
                run |= {"id": record.run.run_id, "name": record.run.display_name}
                run["group"] = record.run.run_group
            for item in [*record.run.config.update, *record.config.update]:
                run["config"][item.key] = json.loads(item.value_json)
            for item in record.summary.update:
                put(run["summary"], item)
            if record.HasField("history"):
                row: dict[str, Any] = {}
                for item in record.history.item:
                    put(row, item)
                run["history"].append(row | {"_step": before + row["_step"]})
            if record.HasField("exit"):
                run["state"] = "failed" if record.exit.exit_code else "finished"
        media = path.parent / "files"
        run["files"] |= {str(file.relative_to(media)): file for file in media.rglob("*.json")}
    return run


def put(node: dict[str, Any], item: Any) -> None:
    path = list(item.nested_key) or [item.key]
    for key in path[:-1]:
        node = node.setdefault(key, {})
    node[path[-1]] = json.loads(item.value_json)


@contextmanager
def serving(runs: list[Run]) -> Iterator[str]:
    """Serve these runs as those of a project; gives the server's address."""
    by_id = {run["id"]: run for run in runs}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
            data = answer(by_id, asked.get("query", ""), asked.get("variables") or {}, address)
            self.send(json.dumps({"data": data}).encode())

        def do_GET(self) -> None:
            _, _, run, name = self.path.split("/", 3)
            self.send(by_id[run]["files"][name].read_bytes())

        def send(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(runs: dict[str, Run], query: str, variables: dict[str, Any], address: str) -> dict[str, Any]:
    if "viewer {" in query:
        viewer = {"id": "VXNlcjox", "entity": ENTITY, "username": ENTITY, "email": None, "flags": "{}"}
        return {"viewer": viewer | {"teams": {"edges": []}}}
    if (variables.get("entity"), variables.get("project")) != (ENTITY, PROJECT):
        return {"project": None}
    if "query Runs(" in query:  # a page holds two
        wanted = json.loads(variables["filters"]).get("group")
        found = [run for run in runs.values() if wanted in (None, run["group"])]
        begin = int(variables.get("cursor") or 0)
        page = found[begin : begin + 2]
        edges = [
            {"node": node(run, query), "cursor": str(place)} for place, run in enumerate(page, begin + 1)
        ]
        more = {"endCursor": str(begin + len(page)), "hasNextPage": begin + 2 < len(found)}
        return {
            "project": {
                "internalId": "1",
                "runCount": len(found),
                "readOnly": True,
                "runs": {"edges": edges, "pageInfo": more},
            }
        }
    run = runs[variables.get("run") or variables.get("runName") or variables["name"]]
    if "query Run(" in query:
        return {"project": {"run": node(run, query)}}
    if "query RunHistoryKeys" in query:
        return {"project": {"run": {"historyKeys": {"lastStep": run["history"][-1]["_step"]}}}}
    if "query RunParquetHistory" in query:  # nothing was exported yet: all is live
        return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": None}}}}
    if "query HistoryPage" in query:
        low, high = variables["minStep"], variables["maxStep"]
        rows = [json.dumps(as_sent(row)) for row in run["history"] if low <= row["_step"] < high]
        return {"project": {"run": {"history": rows}}}
    if "query RunFiles" in query:
        edges = []
        for name in variables["fileNames"]:
            if name in run["files"]:
                size = run["files"][name].stat().st_size
                url = f"{address}/files/{run['id']}/{name}"
                file = {"id": name, "name": name, "url": url, "directUrl": url, "sizeBytes": str(size)}
                file |= {"mimetype": "application/json", "updatedAt": None, "md5": ""}
                edges.append({"node": file, "cursor": name})
        files = {"edges": edges, "pageInfo": {"endCursor": "", "hasNextPage": False}}
        return {"project": {"internalId": "1", "run": {"fileCount": len(edges), "files": files}}}
    return {}


def node(run: Run, query: str) -> dict[str, Any]:
    """A run, with the fields that the query names."""
    config = {key: {"value": value, "desc": None} for key, value in run["config"].items()}
    fields = {
        "id": f"v1:{run['id']}",
        "projectId": "1",
        "name": run["id"],
        "displayName": run["name"],
        "state": run["state"],
        "group": run["group"],
        "config": json.dumps(config),
        "summaryMetrics": json.dumps(as_sent(run["summary"])),
        "systemMetrics": "{}",
        "historyLineCount": len(run["history"]),
        "historyKeys": {"lastStep": run["history"][-1]["_step"]},
        "tags": [],
        "user": {"name": ENTITY, "username": ENTITY},
        "readOnly": True,
        "createdAt": "2026-11-21T00:00:00",
        "heartbeatAt": "2026-11-21T00:00:00",
    }
    others = dict.fromkeys(("sweepName", "jobType", "commit", "description", "notes"))
    return {key: value for key, value in (fields | others).items() if re.search(rf"\b{key}\b", query)}


def as_sent(value: Any) -> Any:
    """JSON has no NaN: W&B sends it as text."""
    if isinstance(value, dict):
        return {key: as_sent(inner) for key, inner in value.items()}
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return value
