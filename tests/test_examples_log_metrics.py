"""examples/log_metrics.py: both files hold what the optimizer recorded."""

import csv
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

import amac_jax
from examples import log_metrics

STEPS, EVERY = 40, 10


def events(path):
    """The events of a file of records: length, its checksum, content, the content's checksum."""
    content, position = path.read_bytes(), 0
    while position < len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        yield Event.FromString(content[position + 12 : position + 12 + length])
        position += 12 + length + 4


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("metrics")
    recorded = []

    def metrics(state):
        recorded.append(real(state))
        return recorded[-1]

    with pytest.MonkeyPatch.context() as patch:
        real = amac_jax.metrics
        patch.setattr(amac_jax, "metrics", metrics)
        log_metrics.main(steps=STEPS, every=EVERY, out=out)
    with open(out / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return out, rows, recorded[1:]  # the first gave the columns


def test_the_csv_file_has_a_row_of_metrics_for_every_recorded_step(written):
    _, rows, recorded = written
    assert [int(row["step"]) for row in rows] == list(range(EVERY, STEPS + 1, EVERY))
    assert len(recorded) == len(rows)
    for row, values in zip(rows, recorded, strict=True):
        assert {*row} == {"step", "loss", *values}
        for name, value in values.items():
            assert float(row[name]) == value.item()


def test_the_metrics_are_of_the_step_of_their_row(written):
    _, rows, _ = written
    peak = amac_jax.amac("auto", STEPS, core="adam").resolved["learning_rate"]
    rate = amac_jax.warmup_cosine(peak, STEPS, STEPS // 10, end=0.3 * peak)
    for row in rows:
        assert float(row["learning_rate"]) == pytest.approx(float(rate(int(row["step"]) - 1)))
    norms = np.array([float(row["grad_norm"]) for row in rows])
    assert len(np.unique(norms)) == len(rows)
    assert (norms > 0).all()


def test_the_event_file_holds_the_same_numbers(written):
    out, rows, _ = written
    (path,) = out.glob("events.out.tfevents.*")
    found = {}
    for event in events(path):
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    assert {*found} == {*rows[0]} - {"step"}
    for name, curve in found.items():
        expected = {int(row["step"]): np.float32(row[name]) for row in rows}
        assert curve == expected, name
