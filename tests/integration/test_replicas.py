"""Several servers on one repository, and a server that restarts during an operation."""

from __future__ import annotations

import statistics
from datetime import datetime

from dbos import DBOSClient, DBOSPortableJSONSerializer
from support import servers
from support.pictures import pictures
from support.servers import Running

from topwork import Client, result
from topwork.bundle.store import Repository
from topwork.changes.database import APPLICATION, database_url

VIOLETS = [(f"violet-{n}.png", content) for n, content in enumerate(pictures("violet", 12))]
MOVES = 5


def began_to_serve(server: Running, *, count: int) -> datetime:
    """Return the time of a server's ``count``-th swap, including the one at its start."""
    return datetime.fromisoformat(server.log_entry("serving", count=count)["timestamp"])


def test_all_servers_swap_within_a_second(colours: Repository) -> None:
    """Both servers swap within a second of each rollback; the median allows for a busy machine."""
    with (
        servers.running(colours.root, cores=1) as server,
        servers.running(colours.root, cores=1, worker=False) as replica,
        Client(server.address) as client,
        Client(replica.address) as second,
    ):
        *_, last = client.watch(client.add_class("colours", "violet", VIOLETS).name)
        assert result(last).revision.revision == 2
        began_to_serve(replica, count=2)  # or it could skip this swap
        seconds = []
        for number in range(MOVES):
            (client, second)[number % 2].rollback("colours")
            moved = colours.serving_state("colours").moves[-1].time
            for follower in (server, replica):
                # The first two swaps are to revision 1 at the start and to 2.
                served = began_to_serve(follower, count=3 + number)
                seconds.append((served - moved).total_seconds())
        answers = {c.classify("colours", [VIOLETS[0][1]]).revision for c in (client, second)}
    assert answers == {colours.serving("colours")}
    assert statistics.median(seconds) < 1


def test_a_restarted_server_resumes_the_operation(colours: Repository) -> None:
    """A server killed between publishing and serving repeats no earlier step after its restart."""
    deaths = ["topwork.bundle.store:Repository.publish"]
    with servers.running(colours.root, deaths=deaths) as first:
        with Client(first.address) as client:
            accepted = client.add_class("colours", "violet", VIOLETS)
        first.log_entry("worker died")  # its restart waits for a second
        first.kill()
        assert first.wait_ended(), "a process is left"
    assert (colours.serving("colours"), colours.revisions("colours")) == (1, [1, 2])
    embedded = steps(colours, accepted.name)
    assert set(embedded) == {"embed"}
    with servers.running(colours.root) as second, Client(second.address) as client:
        *_, last = client.watch(accepted.name)
        assert result(last).revision.revision == 2
        assert list(client.model("colours").revisions) == [1, 2]
    after = steps(colours, accepted.name)
    assert set(after) == {"embed", "solve", "serve"}
    assert after["embed"] == embedded["embed"]


def steps(repository: Repository, operation: str) -> dict[str, int | None]:
    """Return the end times of an operation's steps, by name."""
    client = DBOSClient(
        system_database_url=database_url(repository.root),
        application_name=APPLICATION,
        serializer=DBOSPortableJSONSerializer(),
    )
    try:
        workflow_steps = client.list_workflow_steps(operation.removeprefix("operations/"))
    finally:
        client.destroy()
    ended = {step["function_name"]: step["completed_at_epoch_ms"] for step in workflow_steps}
    return {name: at for name, at in ended.items() if not name.startswith("DBOS.")}
