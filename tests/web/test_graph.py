"""A chord as Mermaid, and as the picture of its page."""

from __future__ import annotations

import re
import time

from celery import chain, chord, group
from kombu.utils.uuid import uuid

from chordguard.cli.graphing import mermaid
from chordguard.ledger.packing import pack_data
from chordguard.recovery.evidence import examine
from chordguard.recovery.tree import Node, tree_of
from chordguard.upstream.awaited import group_id_of
from chordguard.web.picture import WIDTH, picture_of
from tests.chords import stuck
from tests.cli.calls import BOTH, call
from tests.harness import wait_until
from tests.web.browsing import CLUSTER

pytestmark = CLUSTER


@BOTH
def test_graph_has_header_body_and_what_is_in_them(cluster, gate):
    t = cluster.tasks
    inner = chord([t.wait_for_file.s(gate.path, 1), t.echo.s(2)], t.tsum.s())
    header = [inner, t.echo.s(3), chain(t.echo.s(1), group(t.add.s(1), t.add.s(2)))]
    body = chain(t.collect.s(), group(t.echo.s(), t.collect.s()))
    result = chord(header, body).apply_async()
    group_id = group_id_of(result)
    ledger = stuck.ledger_of(cluster)
    wait_until(lambda: ledger.read(group_id).returned == 3, what="the parts")

    found = call(cluster.app, "graph", group_id)

    lines = [line.strip() for line in found.stdout.splitlines()]
    assert (0, "flowchart TB") == (found.code, lines[0])
    assert any(re.fullmatch(r'subgraph n\d+\["header: 3 of 4 done"\]', line) for line in lines)
    assert any(re.fullmatch(r'subgraph n\d+\["header: 1 of 2 done"\]', line) for line in lines)
    done = [line for line in lines if line.endswith(":::done")]
    assert 4 == len(done), done
    assert any("tests.echo<br/>SUCCESS" in line for line in done)
    # Of the inner chord, of the body's chain, and of the outer one.
    assert 3 == sum(" --> " in line for line in lines)
    assert sum(line.startswith("subgraph") for line in lines) == lines.count("end")
    gate.open()


def test_large_chord_is_cut(cluster):
    ledger, group_id = stuck.ledger_of(cluster), uuid()
    packed = pack_data(cluster.app, cluster.tasks.collect.s().set(task_id=uuid()))
    ledger.open(group_id, [uuid() for _ in range(500)], packed, time.time() + 600, 600.0)
    ledger.set_size(group_id, 500)

    shown = call(cluster.app, "graph", group_id, "--limit", "7").stdout

    assert "493 more" in shown
    # The frame, seven members, how many more there are, and the body.
    assert 10 == shown.count('["')


def test_unknown_chord_is_told(cluster):
    found = call(cluster.app, "graph", "no-such-chord", "--json")

    assert 2 == found.code
    assert "no-such-chord" in found.data["problem"]


def test_hostile_names_mean_nothing_to_mermaid():
    evil = Node("task", '"]; click n1 javascript:alert(1) <script>\n%%{init}%% `x`' + "y" * 999)
    tree = Node("chord", "c", "g", children=(Node("group", "header", children=(evil,)), evil))

    text = "\n".join(mermaid(tree))

    labels = re.findall(r'\["(.*?)"\]', text)
    assert 3 == len(labels)
    assert not any(char in label for label in labels for char in '"<>`\n')
    assert all(len(label) < 500 for label in labels)


def test_picture_is_as_wide_as_a_phone_whatever_is_in_it(cluster, gate):
    result = stuck.waiting_chord(cluster, gate)
    found = examine(stuck.ledger_of(cluster), result.parent.id)
    deep = Node("task", "x" * 500)
    for _ in range(8):
        deep = Node("group", "group", children=(deep, deep), count=2)
    foot = Node("chain", "chain", children=(deep,) * 2)
    head = Node("group", "header", children=(Node("task", "a"),) * 300, count=300)

    for tree in (tree_of(found, {}), Node("chord", "c", children=(head, foot))):
        picture = picture_of(tree)
        assert picture.height > 0
        for shape in picture.shapes:
            assert 0 <= shape.x <= WIDTH
            assert shape.x + shape.width <= WIDTH + 0.01
            assert 0 <= shape.y <= picture.height
