"""Machines of a cluster as processes of this one: what Ray's autoscaler asks for nodes and hands them back to.

Ray's monitor imports it (``provider: {type: external, module: tools.autoscale.provider.LocalNodes}``). Each node is a
raylet of its own with the resources and labels of its type. It differs from the in-tree provider for tests, which it
derives from, in that a node that has died is noticed, and in what ``control.json`` in its folder says: which types the
"cloud" has no capacity for at the moment. ``nodes.jsonl`` there has what happened, line by line.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

CONTROL, EVENTS = "control.json", "nodes.jsonl"


class NoCapacity(RuntimeError):
    """The cloud has no machine of this type now."""


class LocalNodes(FakeMultiNodeProvider):
    """Starts and ends raylets by process."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        """``provider_config``: that of ``machines.autoscaling_config``; ``folder`` is where files are exchanged."""
        super().__init__(provider_config, cluster_name)
        self._folder = Path(provider_config["folder"])
        self._noted = set(self._nodes)

    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: dict[str, float], labels: dict[str, str]
    ) -> None:
        """
        Raises:
            NoCapacity: ``control.json`` says so of this type; the autoscaler asks again later.
        """
        kind = tags[TAG_RAY_USER_NODE_TYPE]
        if kind in self._control().get("no_capacity", ()):
            self._note("refused", kind=kind, count=count)
            raise NoCapacity(f"no machine of type {kind} is to be had")
        for _ in range(count):  # one by one, so that each is noted as soon as it runs
            super().create_node_with_resources_and_labels(node_config, tags, 1, resources, labels)
            self._note_started()

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """As the base class; nodes whose raylet has ended are gone, like a spot machine. The autoscaler lets idle nodes
        drain, which ends their raylets in good order; what was killed has another exit code."""
        with self.lock:
            for name, node in list(self._nodes.items()):
                code = _exit_code(node)
                if code is not None:
                    kind = node["tags"][TAG_RAY_USER_NODE_TYPE]
                    self._terminate_node(self._nodes.pop(name))
                    self._note("lost" if code else "ended", kind=kind, node=name)
        return list(super().non_terminated_nodes(tag_filters))

    def terminate_node(self, node_id: str) -> None:
        """The autoscaler gives a node back, or removes one whose loss it has noticed before the provider did."""
        node = self._nodes.get(node_id)
        kind = node["tags"][TAG_RAY_USER_NODE_TYPE] if node else ""
        lost = node is not None and bool(_exit_code(node))
        super().terminate_node(node_id)
        self._note("lost" if lost else "ended", kind=kind, node=node_id)

    def _note_started(self) -> None:
        with self.lock:  # types are launched beside each other
            for name in sorted(self._nodes.keys() - self._noted):
                self._noted.add(name)
                node = self._nodes[name]
                raylet = node["node"].all_processes["raylet"][0].process.pid
                self._note("started", kind=node["tags"][TAG_RAY_USER_NODE_TYPE], node=name, pid=raylet)

    def _control(self) -> dict[str, Any]:
        file = self._folder / CONTROL
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}

    def _note(self, what: str, **details: Any) -> None:
        line = json.dumps({"time": time.time(), "event": what, **details})
        with (self._folder / EVENTS).open("a", encoding="utf-8") as file:
            file.write(line + os.linesep)


def _exit_code(node: dict[str, Any]) -> int | None:
    """Of the node's raylet; None while it runs."""
    raylets = node["node"].all_processes.get("raylet", []) if "node" in node else []
    code: int | None = raylets[0].process.poll() if raylets else None
    return code
