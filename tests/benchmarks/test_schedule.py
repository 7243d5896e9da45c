"""Schedules whose lengths are known, and times that are measured or estimated."""

from __future__ import annotations

import pytest
import yaml
from benchmarks.schedule import (
    NodeClock,
    ScheduleError,
    Timed,
    length,
    list_schedule,
    longest_paths,
    read_times,
    report,
    timed,
)
from kedro.pipeline import Pipeline, node

CHAIN = {"a": Timed(1), "b": Timed(2, after=("a",)), "c": Timed(3, after=("b",))}
ESTIMATED = {"estimated": "nothing"}


def took(nodes, devices):
    return length(nodes, list_schedule(nodes, devices))


def test_a_chain_takes_its_sum_on_any_number_of_devices():
    assert longest_paths(CHAIN) == {"a": 6, "b": 5, "c": 3}
    assert took(CHAIN, 1) == took(CHAIN, 8) == 6


@pytest.mark.parametrize(("devices", "expected"), [(1, 28), (2, 16), (3, 12), (7, 4), (100, 4)])
def test_equal_nodes_take_as_many_turns_as_the_devices_need(devices, expected):
    assert took({str(n): Timed(4) for n in range(7)}, devices) == expected


def test_the_node_that_most_waits_for_goes_first():
    nodes = {**CHAIN, "x": Timed(4), "y": Timed(2)}
    # a b c on one device, x y on the other; x and y first would take 8
    assert took(nodes, 2) == 6
    assert list_schedule(nodes, 2) == {"a": 0, "b": 1, "c": 3, "x": 0, "y": 4}


def test_shares_of_a_device_add_up_and_what_takes_none_does_not_wait():
    thirds = {str(n): Timed(1, share=1 / 3) for n in range(6)}
    assert took(thirds, 1) == 2
    assert took({str(n): Timed(1, share=0) for n in range(9)}, 1) == 1
    with pytest.raises(ScheduleError, match="wide asks for more than 1 devices"):
        list_schedule({"wide": Timed(1, share=2)}, 1)


def verb(given):
    return given


def other(given):
    return given


def test_a_pipeline_s_devices_are_its_gpus_where_a_node_asks_for_one(tmp_path):
    steps = Pipeline(
        [node(other, "start", "x", name="read"), node(verb, "x", "y", name="use", tags="gpu_0.5")]
    )
    file = tmp_path / "times.yml"
    kinds = {
        "other.verb": {"seconds": 2, "measured": "a card"},
        "other": {"seconds": 1, **ESTIMATED},
    }
    file.write_text(yaml.safe_dump({"profile": {"card": kinds}}))
    times = read_times(file, "profile", "card")
    assert timed(steps, times) == {"read": Timed(1, 0, ()), "use": Timed(2, 0.5, ("read",))}
    said = report("card", steps, times, 4)
    assert "total work            1.0 s" in said
    assert "critical path         3.0 s" in said
    assert "list schedule         3.0 s, 8% of" in said
    assert "other.verb: measured, a card" in said
    assert "other: estimated, nothing" in said
    # without one a device is a CPU, and every kind of node needs a time
    plain = Pipeline([node(other, "start", "x", name="read")])
    with pytest.raises(ScheduleError, match=r"no times of other\.other; add them"):
        timed(plain, times)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"seconds": 1}, "say either 'measured"),
        ({"seconds": 1, "measured": "a", **ESTIMATED}, "say either 'measured"),
        ({"seconds": 0, **ESTIMATED}, "greater than 0"),
    ],
    ids=["neither", "both", "no time"],
)
def test_a_time_says_where_it_is_from(entry, expected, tmp_path):
    file = tmp_path / "times.yml"
    file.write_text(yaml.safe_dump({"a.b": entry}))
    with pytest.raises(ScheduleError, match=expected):
        read_times(file)
    with pytest.raises(ScheduleError, match="has no times of paper"):
        read_times(file, "paper")


@pytest.mark.xdist_group("runs")
def test_the_clock_takes_every_node_s_time(project, tmp_path):
    project.edit("smoke/parameters.yml", methods=["base"])
    clock = NodeClock()
    with project.session() as session:
        session._hook_manager.register(clock)
        session.run()
    file = tmp_path / "times.yml"
    file.write_text(yaml.safe_dump(clock.by_kind()))
    times = read_times(file)
    assert {"tasks.read_source", "checkpoints.train_trajectory", "evaluate.predict"} <= times.keys()
    assert all(one.measured for one in times.values())
