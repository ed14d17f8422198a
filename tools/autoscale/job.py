"""Ray's own autoscaler on this machine: it starts nodes for a job, takes them back, and loses one in the middle.

    python jobs/autoscale_demo.py --out autoscale.json

A head without capacity is started; its node types are those of a launch file (default: cluster/aws.yaml) with this
machine's sizes. A job is submitted to it as to any cluster (`ray job submit`): nodes appear for its replicas and its
learner by their labels. In the middle of training, a spot node is killed, and the "cloud" has no further machine of
its type for a while. Afterwards idle nodes go, and every group of dialogues must have been learned from exactly once.
Writes FILE as JSON and, beside it, a picture of nodes and replicas over time. Takes 5 to 10 minutes on two cores. Exit
code 1: something was lost, repeated or never came; 2: a wrong argument.
"""

import json
import logging
import re
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from calibrated_rl.cli import command
from calibrated_rl.errors import UserError
from calibrated_rl.runtime import console
from calibrated_rl.settings.fields import Positive, Range

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]

UPDATE = re.compile(r"update (\d+)/(\d+):")
DEMAND = "starting two vLLM engines"
SAMPLE_S = 1.0
ARM = "interactive"
CPUS = 1.0
"""Of a node."""
LOST_AFTER = 8
"""Updates after which a node, or the head, is lost."""
JOB_TIMEOUT_S = 1200.0
GONE_TIMEOUT_S = 180.0
NODE_TIMEOUT_S = 90.0


class Timeline:
    """What happens, with seconds since the start: nodes and replicas once a second, and events."""

    def __init__(self) -> None:
        self.began = time.time()
        self.samples: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []

    def note(self, what: str, at: float | None = None, **details: Any) -> None:
        """Add an event; ``at``: seconds since the epoch, default: now."""
        seconds = round((time.time() if at is None else at) - self.began, 2)
        self.events.append({"seconds": seconds, "event": what, **details})
        self.events.sort(key=lambda event: event["seconds"])
        logger.info(f"{seconds:6.1f} s: {what} {' '.join(map(str, details.values()))}".rstrip())

    def seconds_of(self, what: str, **details: Any) -> float | None:
        """When an event with these details happened first."""
        for event in self.events:
            if event["event"] == what and details.items() <= event.items():
                return float(event["seconds"])
        return None


def main() -> int:
    assert __doc__ is not None
    parser = command.Parser(description=__doc__)
    parser.add_argument("--out", type=command.result_file(".json"), default=Path("autoscale.json"), metavar="FILE",
                        help="JSON file to write (default: autoscale.json)")  # fmt: skip
    parser.add_argument("--config", default="configs/autoscale.yaml", help="what is trained (default: %(default)s)")
    parser.add_argument("--launch-file", type=Path, default=Path("cluster/aws.yaml"), metavar="FILE",
                        help="whose node types are started (default: %(default)s)")  # fmt: skip
    parser.add_argument("--prices", type=Path, default=Path("configs/clusters/gpus.yaml"), metavar="FILE",
                        help="what a machine of each type costs, for jobs/plan.py (default: %(default)s)")  # fmt: skip
    parser.add_argument("--runs", type=command.result_folder, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--minute", type=command.allowed(Annotated[float, Range(above=0)]), default=1.0, metavar="S",
                        help="seconds that a minute of the launch file's idle time takes (default: 1)")  # fmt: skip
    parser.add_argument("--refused", type=command.allowed(Positive), default=20, metavar="S",
                        help="seconds for which no machine of the killed type is to be had (default: 20)")  # fmt: skip
    parser.add_argument(
        "--lose-head", action="store_true",
        help="instead: lose head and nodes in the middle, and give the same command to a new head, whose run folder is "
        "empty, with training.checkpoint_store",
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the job")
    arguments = parser.parse_intermixed_args()

    from calibrated_rl.config.load import load_config
    from calibrated_rl.storage.files import write_json
    from tools.autoscale.machines import spot_types
    from tools.autoscale.picture import draw

    run = arguments.runs / load_config(arguments.config, arguments.overrides).name
    if run.exists():
        raise UserError(f"{run} is there already: remove it, so that only what happens now is counted")
    spot = spot_types(arguments.launch_file)
    if not spot:
        raise UserError(f"{arguments.launch_file} has no spot nodes: none could be killed")
    folder = Path(tempfile.mkdtemp(prefix="autoscale"))
    try:
        result = (
            lose_head(arguments, run, folder) if arguments.lose_head else demonstrate(arguments, run, folder, spot[0])
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write_json(arguments.out, result)
    if arguments.lose_head:
        console.result(json.dumps({key: value for key, value in result.items() if key != "events"}, indent=1))
        console.result(f"figures: {arguments.out.resolve()}")
        return 0 if result["clean"] else 1
    picture = arguments.out.with_suffix(".png")
    draw(result, picture)
    console.result(summary(result))
    console.result(f"figures: {arguments.out.resolve()}; picture: {picture.resolve()}")
    return 0 if result["clean"] else 1


def demonstrate(arguments: Any, run: Path, folder: Path, spot: str) -> dict[str, Any]:
    """Start the cluster, submit the job, disturb it, wait for the end of both."""
    from tools.autoscale.cluster import local_cluster

    timeline = Timeline()
    with local_cluster(arguments.launch_file, folder, cpus=CPUS, minute_s=arguments.minute) as cluster:
        timeline.note("head ready")
        job = submit(cluster, arguments, arguments.runs)
        timeline.note("job submitted")
        stop = threading.Event()
        sampler = threading.Thread(target=sample, args=(cluster, timeline, stop), daemon=True)
        reader = threading.Thread(target=read, args=(job, timeline, folder / "job.log"), daemon=True)
        sampler.start()
        reader.start()
        try:
            disturb(cluster, timeline, job, spot, arguments.refused)
            code = job.wait(JOB_TIMEOUT_S)
            timeline.note("job ended", code=code)
            emptied = wait(lambda: cluster.workers() == [], GONE_TIMEOUT_S)
            timeline.note("all nodes gone" if emptied else "nodes are left")
            time.sleep(3 * SAMPLE_S)  # until the provider has noticed it, too
        finally:
            job.kill()
            stop.set()
            sampler.join(30)
        for event in cluster.events():
            count = {key: value for key, value in event.items() if key not in ("time", "event", "pid")}
            timeline.note(f"node {event['event']}", event["time"], **count)
        log = (folder / "job.log").read_text(encoding="utf-8", errors="replace")
        if run.is_dir():
            (run / "job.log").write_text(log, encoding="utf-8")
        elif code:
            logger.error(log[-3000:])
    result = figures(timeline, run, spot, code, emptied)
    return result | ({"cost": planned_and_paid(timeline, run, arguments.prices)} if code == 0 else {})


def planned_and_paid(timeline: Timeline, run: Path, prices: Path) -> Any:
    """Of the updates alone, from the first one's end to the last one's."""
    from tools.autoscale.cost import cost, node_seconds, prices_of

    updates = [event["seconds"] for event in timeline.events if event["event"] == "update"]
    nodes = node_seconds(timeline.samples, updates[0], updates[-1])
    return cost(run, ARM, prices_of(prices, CPUS), LOST_AFTER, updates[-1] - updates[0], nodes)


def lose_head(arguments: Any, run: Path, folder: Path) -> dict[str, Any]:
    """Lose head and nodes after a fifth of the updates; a new head, to which the same command is given, has nothing but
    the checkpoint store."""
    from calibrated_rl.run.audit import audit_run
    from tools.autoscale.cluster import local_cluster

    timeline, lost_runs = Timeline(), folder / "lost"
    store = f"training.checkpoint_store=file://{folder / 'store'}"
    code = 0
    for head, runs in (("first", lost_runs), ("second", arguments.runs)):
        place = folder / head
        place.mkdir()
        with local_cluster(arguments.launch_file, place, cpus=CPUS, minute_s=arguments.minute) as cluster:
            timeline.note("head ready", which=head)
            job = submit(cluster, arguments, runs, store)
            timeline.note("job submitted", which=head)
            reader = threading.Thread(target=read, args=(job, timeline, place / "job.log"), daemon=True)
            reader.start()
            if head == "first":
                wait(lambda: last_update(timeline) >= LOST_AFTER, JOB_TIMEOUT_S, job)
                timeline.note("head lost", after_update=last_update(timeline))
            else:
                code = job.wait(JOB_TIMEOUT_S)
                timeline.note("job ended", code=code)
            log = place / "job.log"
        job.kill()
        job.wait(60)
        reader.join(30)
        if code:
            logger.error(log.read_text(encoding="utf-8", errors="replace")[-3000:])
    shutil.rmtree(lost_runs, ignore_errors=True)
    lost = timeline.seconds_of("head lost") or 0.0
    reached = [e["number"] for e in timeline.events if e["event"] == "update" and e["seconds"] <= lost]
    later = [(e["number"], e["seconds"]) for e in timeline.events if e["event"] == "update" and e["seconds"] > lost]
    accounts = audit_run(run) if code == 0 else []
    problems = [f"{account.name}: {problem}" for account in accounts for problem in account.problems]
    resumed = later[0] if later else None
    return {
        "clean": code == 0 and bool(reached) and resumed is not None and resumed[0] > 1 and not problems,
        "problems": problems,
        "updates_before": max(reached, default=0),
        "first_update_after": None if resumed is None else resumed[0],
        "seconds_from_loss_to_first_update": None if resumed is None else round(resumed[1] - lost, 1),
        "groups": {"requested": sum(a.requested for a in accounts), "delivered": sum(a.delivered for a in accounts)},
        "events": timeline.events,
    }  # fmt: skip


def last_update(timeline: Timeline) -> int:
    """The largest number of an update that is done."""
    return max((event["number"] for event in timeline.events if event["event"] == "update"), default=0)


def submit(cluster: Any, arguments: Any, runs: Path, *settings: str) -> "subprocess.Popen[str]":
    """`ray job submit` of a training with the settings for labelled clusters, a replica a node.

    Without `--working-dir`: nodes of one machine would unpack it into the same folder, one while another imports from
    it. They find the code where it is.
    """
    train = [
        "python", "-u", str(ROOT / "jobs/train.py"), str(Path(arguments.config).resolve()),
        str(ROOT / "calibrated_rl/config/hardware/labelled.yaml"), "policy.engine.num_cpus=1",
        "simulator.engine.num_cpus=1", "simulator.replicas=2", *settings, *arguments.overrides, "--hardware", "cpu",
        "--arm", ARM, "--runs", str(runs.resolve()),
    ]  # fmt: skip
    command_line = ["ray", "job", "submit", "--address", cluster.address, "--", *train]
    return subprocess.Popen(
        command_line, env=cluster.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def read(job: "subprocess.Popen[str]", timeline: Timeline, file: Path) -> None:
    """Keep what the job prints, and note what of it says how far it is."""
    assert job.stdout is not None
    with file.open("w", encoding="utf-8") as log:
        for line in job.stdout:
            log.write(line)
            log.flush()
            if DEMAND in line:
                timeline.note("demand")
            elif found := UPDATE.search(line):
                timeline.note("update", number=int(found[1]))
            elif re.search(r"replica \d+ (marked|left|joins|joined|recovered)|replicas?:? \d+ ->", line):
                timeline.note("replica", text=line.split("] ", 1)[-1].strip())


def sample(cluster: Any, timeline: Timeline, stop: threading.Event) -> None:
    """Nodes by type and replicas once a second, from Ray's state API."""
    while not stop.wait(SAMPLE_S):
        workers = cluster.workers()
        if workers is None:
            continue
        nodes: dict[str, int] = {}
        for node in workers:
            kind = (node.get("labels") or {}).get("part", "?")
            nodes[kind] = nodes.get(kind, 0) + 1
        actors = [actor for actor in cluster.state("actors") if actor.get("state") == "ALIVE"]
        replicas = sum(str(actor.get("class_name", "")).startswith("ReplicaActor") for actor in actors)
        timeline.samples.append(
            {"seconds": round(time.time() - timeline.began, 2), "nodes": nodes, "replicas": replicas}
        )


def disturb(cluster: Any, timeline: Timeline, job: "subprocess.Popen[str]", spot: str, refused_s: int) -> None:
    """Kill a spot node after a fifth of the updates, once each has a replica, and refuse others of its type for a
    while."""

    def trained() -> bool:
        refuse_without_nodes(cluster, timeline)
        return last_update(timeline) >= LOST_AFTER and not has_spare_node(timeline)

    if not wait(trained, JOB_TIMEOUT_S, job):
        return
    cluster.no_capacity(spot)
    timeline.note("no capacity", kind=spot)
    timeline.note("spot node killed", node=cluster.kill_node(spot))
    wait(lambda: False, refused_s, job)
    cluster.no_capacity()
    timeline.note("capacity again", kind=spot)


def has_spare_node(timeline: Timeline) -> bool:
    """Whether there are more nodes for replicas than replicas: what is lost would move there."""
    if not timeline.samples:
        return False
    latest = timeline.samples[-1]
    return bool(latest["nodes"].get("rollout", 0) > latest["replicas"])


def refuse_without_nodes(cluster: Any, timeline: Timeline) -> None:
    """
    Raises:
        UserError: nodes are needed for ``NODE_TIMEOUT_S``, and the provider has started none.
    """
    demand = timeline.seconds_of("demand")
    if demand is None or time.time() - timeline.began - demand < NODE_TIMEOUT_S:
        return
    happened = Counter(event["event"] for event in cluster.events())
    if not happened["started"]:
        refused = f"; it was refused {happened['refused']} times" if happened["refused"] else ""
        raise UserError(f"the provider has started no node within {NODE_TIMEOUT_S:.0f} s of the demand{refused}")


def wait(condition: Any, seconds: float, job: "subprocess.Popen[str] | None" = None) -> bool:
    """Whether ``condition`` came true in time, and before the job ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and (job is None or job.poll() is None):
        if condition():
            return True
        time.sleep(0.5)
    return False


def figures(timeline: Timeline, run: Path, spot: str, code: int, emptied: bool) -> dict[str, Any]:
    """What is reported."""
    from calibrated_rl.run.audit import audit_run
    from tools.autoscale.cost import node_seconds

    accounts = audit_run(run) if code == 0 else []
    problems = [f"{account.name}: {problem}" for account in accounts for problem in account.problems]
    demand, first = timeline.seconds_of("demand"), timeline.seconds_of("update", number=1)
    killed, again = timeline.seconds_of("spot node killed"), timeline.seconds_of("capacity again")
    started = [event for event in timeline.events if event["event"] == "node started"]
    later = [e["seconds"] for e in started if e["kind"] == spot and again is not None and e["seconds"] > again]
    back = min(later, default=None)
    updates = [event["seconds"] for event in timeline.events if event["event"] == "update"]
    took = [round(after - before, 2) for before, after in pairwise(updates)]

    def between(one: float | None, other: float | None) -> float | None:
        return None if one is None or other is None else round(other - one, 2)

    events = timeline.events
    return {
        "clean": code == 0 and emptied and bool(accounts) and not problems and killed is not None and back is not None,
        "exit_code": code,
        "problems": problems,
        "groups": {"requested": sum(a.requested for a in accounts), "delivered": sum(a.delivered for a in accounts)},
        "seconds": {
            "submit_to_demand": between(timeline.seconds_of("job submitted"), demand),
            "demand_to_first_node": between(demand, started[0]["seconds"] if started else None),
            "demand_to_first_update": between(demand, first),
            "longest_update": max(took, default=None),
            "median_update": statistics.median(took) if took else None,
            "capacity_again_to_node": between(again, back),
            "job_end_to_no_nodes": between(timeline.seconds_of("job ended"), timeline.seconds_of("all nodes gone")),
        },
        "nodes": {
            what: sum(event["event"] == f"node {what}" for event in events)
            for what in ("started", "refused", "lost", "ended")
        },
        "most_replicas": max((one["replicas"] for one in timeline.samples), default=0),
        "node_seconds": node_seconds(timeline.samples),
        "samples": timeline.samples,
        "events": events,
    }  # fmt: skip


def summary(result: dict[str, Any]) -> str:
    """For the terminal."""
    seconds, nodes, groups = result["seconds"], result["nodes"], result["groups"]
    lines = [
        f"nodes: {nodes['started']} started, {nodes['refused']} times refused, {nodes['lost']} lost, "
        f"{nodes['ended']} given back; at most {result['most_replicas']} replicas",
        f"groups: {groups['requested']} requested, {groups['delivered']} learned from; "
        f"{len(result['problems'])} lost or repeated",
        "seconds: " + json.dumps(seconds),
    ]
    if "cost" in result:
        predicted, happened = (result["cost"][what] for what in ("predicted", "happened"))
        lines.append(
            f"cost of the updates: ${predicted['dollars']:.3f} in {predicted['seconds']:.0f} s predicted "
            f"from the first {result['cost']['from_updates']}, ${happened['dollars']:.3f} in "
            f"{happened['seconds']:.0f} s happened"
        )
    return "\n".join([*lines, *result["problems"]])
