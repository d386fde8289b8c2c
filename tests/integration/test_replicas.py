"""Several servers on one repository, and one that comes back amid an operation."""

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
    """Return when a server swapped for the ``count``-th time, that of its start included."""
    return datetime.fromisoformat(server.fact("serving", count=count)["timestamp"])


def test_all_servers_serve_what_is_published_within_a_second(colours: Repository) -> None:
    """Whichever of two servers was asked, both follow each move; on a busy machine most of them."""
    with (
        servers.running(colours.root, cores=1) as one,
        servers.running(colours.root, cores=1, worker=False) as other,
        Client(one.address) as client,
        Client(other.address) as second,
    ):
        *_, last = client.watch(client.add_class("colours", "violet", VIOLETS).name)
        assert result(last).revision.revision == 2
        began_to_serve(other, count=2)  # or it could miss that one served at all
        seconds = []
        for number in range(MOVES):
            asked = (client, second)[number % 2]
            asked.rollback("colours")
            moved = colours.serving_state("colours").moves[-1].time
            for server in (one, other):
                # Each served 1 at its start, then 2.
                served = began_to_serve(server, count=3 + number)
                seconds.append((served - moved).total_seconds())
        answers = {one.classify("colours", [VIOLETS[0][1]]).revision for one in (client, second)}
    assert answers == {colours.serving("colours")}
    assert statistics.median(seconds) < 1


def test_a_server_that_comes_back_goes_on_with_the_operation(colours: Repository) -> None:
    """Killed when the revision is published and not yet serving, it repeats no step before that."""
    deaths = ["topwork.bundle.store:Repository.publish"]
    with servers.running(colours.root, deaths=deaths) as first:
        with Client(first.address) as client:
            accepted = client.add_class("colours", "violet", VIOLETS)
        first.fact("worker died")  # and none is started for a second
        first.kill()
        assert first.gone(), "a process was left behind"
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
    """Return when each step of an operation ended, by name."""
    client = DBOSClient(
        system_database_url=database_url(repository.root),
        application_name=APPLICATION,
        serializer=DBOSPortableJSONSerializer(),
    )
    try:
        found = client.list_workflow_steps(operation.removeprefix("operations/"))
    finally:
        client.destroy()
    ended = {one["function_name"]: one["completed_at_epoch_ms"] for one in found}
    return {name: at for name, at in ended.items() if not name.startswith("DBOS.")}
