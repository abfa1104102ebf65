"""`amac_reference` against what the published PyTorch code computed, step by step."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax

DATA = Path(__file__).parent / "data"
GOLDEN = sorted(path.stem for path in DATA.glob("amac_*.npz"))


class Recording(NamedTuple):
    config: dict
    init: list[np.ndarray]
    grads: list[np.ndarray]  # each (step, ...)
    noise: list[np.ndarray]
    params: list[np.ndarray]
    average: list[np.ndarray]
    averaged: int


def load(name: str) -> Recording:
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        config = json.loads(str(file["config"]))
        tensors = range(len(config["shapes"]))
        fields = ("init", "grads", "noise", "params", "swa")
        arrays = ([file[f"{field}_{i}"] for i in tensors] for field in fields)
        return Recording(config, *arrays, averaged=int(file["swa_n"]))


def optimizer(recording: Recording) -> optax.GradientTransformationExtraArgs:
    config = recording.config
    noise = [jnp.asarray(tensor) for tensor in recording.noise]
    names = ("lr", "warmup_steps", "noise_factor", "total_steps")
    return amac_jax.amac_reference(
        **{name: config[name] for name in names if name in config},
        sampler=lambda key, count, like: [tensor[count] for tensor in noise],
    )


def replay(recording: Recording):
    tx = optimizer(recording)

    def step(carry, gradients):
        params, state = carry
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    init = [jnp.asarray(tensor) for tensor in recording.init]
    gradients = [jnp.asarray(tensor) for tensor in recording.grads]
    (_, state), params = jax.jit(lambda: jax.lax.scan(step, (init, tx.init(init)), gradients))()
    return params, state


@pytest.mark.parametrize("name", GOLDEN)
def test_equals_the_published_code_at_every_step(name):
    recording = load(name)
    float64 = recording.config["dtype"] == "float64"
    tolerance = 1e-12 if float64 else 2e-6
    with jax.enable_x64(float64):
        params, state = replay(recording)
        for ours, theirs in zip(params, recording.params, strict=True):
            assert ours.dtype == recording.config["dtype"]
            assert np.max(np.abs(ours - theirs)) <= tolerance
        averages = amac_jax.averaged_params(state)
        assert int(state[-1].inner.averaged) == recording.averaged
        for ours, theirs in zip(averages, recording.average, strict=True):
            assert np.max(np.abs(ours - theirs)) <= tolerance


def test_there_are_four_recordings_of_both_versions():
    versions = [load(name).config["version"] for name in GOLDEN]
    assert sorted(versions) == [1, 2, 2, 2]
