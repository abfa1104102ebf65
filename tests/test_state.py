"""`averaged_params`, `slow_params`, `learning_rate` and `metrics`: found wherever they are."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState

import amac_jax
from amac_jax import (
    adam,
    amac,
    averaged_params,
    compose,
    learning_rate,
    metrics,
    sgd,
    slow_params,
)
from amac_jax.optimizers import EVERY_TECHNIQUE
from tests.helpers import assert_close, assert_same_bits, float64, normals, train

LIKE = {"kernel": np.zeros((4, 3), np.float32), "bias": np.zeros(3, np.float32)}
START, *GRADIENTS = normals(0, LIKE, 7)
TECHNIQUES = {"sync_period": 2, "average_start": 2, "record_metrics": True}
RATES = [0.1, 0.2, 0.05, 0.1, 0.3, 0.15]  # one a step
TX = sgd(0.1, **TECHNIQUES)
*_, (LAST, STATE) = train(TX, START, GRADIENTS)


def falling(count: Any) -> Any:
    return jnp.array(RATES, jnp.float32)[count]


ours = {"kernel": "ours", "bias": "ours"}


def nestings(rate: Any) -> dict[str, optax.GradientTransformation]:
    tx = sgd(rate, **TECHNIQUES)
    return {
        "alone": tx,
        "chain": optax.chain(optax.identity(), tx),
        "named_chain": optax.named_chain(("first", optax.identity()), ("second", tx)),
        "masked": optax.masked(tx, True),
        "partition": optax.partition({"ours": tx, "other": optax.sgd(1.0)}, ours),
        "MultiSteps": optax.MultiSteps(tx, 1).gradient_transformation(),
        "accumulate_gradients": amac_jax.accumulate_gradients(tx, 1),
        "inject_hyperparams": optax.inject_hyperparams(sgd)(rate, **TECHNIQUES),  # pyright: ignore
        "apply_if_finite": optax.apply_if_finite(tx, 3),
        "apply_if_finite twice": optax.apply_if_finite(optax.apply_if_finite(tx, 3), 3),
        "skip_nonfinite": sgd(rate, **TECHNIQUES, skip_nonfinite=True),
        "skip_nonfinite around it": amac_jax.skip_nonfinite(tx),
        "all of them": optax.chain(
            optax.identity(),
            optax.named_chain(
                (
                    "a",
                    optax.masked(
                        optax.partition({"ours": optax.apply_if_finite(tx, 3)}, ours), True
                    ),
                )
            ),
        ),
    }


NESTINGS = nestings(falling)


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("nesting", NESTINGS)
def test_found_in_any_nesting(nesting):
    *_, (_, expected) = train(NESTINGS["alone"], START, GRADIENTS)
    *_, (params, state) = train(NESTINGS[nesting], START, GRADIENTS)
    assert_close(averaged_params(state), averaged_params(expected))
    assert_close(averaged_params(state, params), averaged_params(expected))
    assert_close(slow_params(state), slow_params(expected))
    recorded = metrics(state)
    assert ("skipped_steps" in recorded) == ("finite" in nesting or nesting == "all of them")
    assert recorded.pop("skipped_steps", 0) == 0
    assert_close(recorded, metrics(expected))


apply_gradients = jax.jit(TrainState.apply_gradients)


@nnx.jit
def update_model(optimizer: nnx.Optimizer, model: nnx.Module, gradients: nnx.State) -> None:
    optimizer.update(model, gradients)


def test_found_in_a_linen_train_state():
    state = TrainState.create(apply_fn=lambda: None, params=START, tx=TX)
    for gradient in GRADIENTS:
        state = apply_gradients(state, grads=gradient)
    for holder in (state, state.opt_state):
        assert_close(averaged_params(holder, state.params), averaged_params(STATE))
        assert_close(slow_params(holder), slow_params(STATE))
        assert_close(metrics(holder), metrics(STATE))


def test_found_in_an_nnx_optimizer_and_can_be_put_into_the_model():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    nnx.update(model, START)
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    for gradient in GRADIENTS:
        gradients = nnx.state(model, nnx.Param)
        nnx.replace_by_pure_dict(gradients, gradient)
        update_model(optimizer, model, gradients)
    assert_close(metrics(optimizer), metrics(STATE))
    current = nnx.state(model, nnx.Param)
    for average in (
        averaged_params(optimizer),
        averaged_params(optimizer.opt_state),
        averaged_params(optimizer, current),
    ):
        nnx.update(model, average)
        assert_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), averaged_params(STATE))
    nnx.update(model, slow_params(optimizer))
    assert_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), slow_params(STATE))


# --- The learning rate ----------------------------------------------------------------------------


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("nesting", NESTINGS)
def test_the_learning_rate_is_that_of_the_step_just_taken(nesting):
    tx = NESTINGS[nesting]
    assert learning_rate(tx.init(START)) == 0.0
    for (_, state), rate in zip(train(tx, START, GRADIENTS), RATES, strict=True):
        found = learning_rate(state)
        assert (found.shape, found.dtype.name) == ((), "float32")
        assert_same_bits(found, jnp.float32(rate))
        assert_same_bits(found, metrics(state)["learning_rate"])
        assert_same_bits(jax.jit(learning_rate)(state), found)


def test_the_learning_rate_has_the_steps_precision():
    with jax.enable_x64(True):
        tx, params = adam(0.1), np.ones(2)
        _, state = jax.jit(tx.update)(params, jax.jit(tx.init)(params))
        assert_same_bits(learning_rate(state), jnp.float64(0.1))


def test_the_learning_rate_while_gradients_are_gathered_is_that_of_the_last_step():
    tx = amac_jax.accumulate_gradients(sgd(falling), 3)
    found = [float(learning_rate(state)) for _, state in train(tx, START, GRADIENTS)]
    assert found == [0.0, 0.0, *3 * [float(jnp.float32(0.1))], float(jnp.float32(0.2))]


def test_a_skipped_step_leaves_the_learning_rate():
    tx = sgd(falling, skip_nonfinite=True)
    broken = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf) * np.nan), START)
    sequence = [broken, GRADIENTS[0], GRADIENTS[1], broken, broken, GRADIENTS[2]]
    found = [learning_rate(state) for _, state in train(tx, START, sequence)]
    assert_same_bits(found, [jnp.float32(x) for x in (0.0, 0.1, 0.2, 0.2, 0.2, 0.05)])


def test_the_learning_rate_in_a_train_state_and_in_an_nnx_optimizer():
    linen = TrainState.create(apply_fn=lambda: None, params=START, tx=sgd(falling))
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, sgd(falling), wrt=nnx.Param)
    assert learning_rate(linen) == learning_rate(optimizer) == 0.0
    for gradient, rate in zip(GRADIENTS, RATES, strict=True):
        linen = apply_gradients(linen, grads=gradient)
        gradients = nnx.state(model, nnx.Param)
        nnx.replace_by_pure_dict(gradients, gradient)
        update_model(optimizer, model, gradients)
        for holder in (linen, linen.opt_state, optimizer, optimizer.opt_state):
            assert_same_bits(learning_rate(holder), jnp.float32(rate))


def test_the_learning_rate_of_amac_warms_up():
    tx = amac(0.1, 60)  # a tenth of it, 6 steps
    found = [learning_rate(state) for _, state in train(tx, START, GRADIENTS)]
    assert_close(found, [np.float32(0.1 * step / 6) for step in range(1, 7)])


EVERY = {
    "clip_norm": 1.0, "centralize": True, "noise": 0.1, "clip_value": 1.0, "momentum": 0.9,
    "weight_decay": 0.1, "layer_multipliers": {"kernel": 0.5},
    "plateau": amac_jax.reduce_on_plateau(), "sync_period": 5, "average_start": 1,
    "skip_nonfinite": True, "record_metrics": True,
}  # fmt: skip


def test_optax_finds_one_learning_rate_and_one_count():
    """`optax.tree.get` refuses two answers."""
    injected = optax.inject_hyperparams(adam)(0.25)
    update = jax.jit(injected.update)
    _, state = update(START, injected.init(START), START)
    assert optax.tree.get(state, "learning_rate") == 0.25
    state = optax.tree.set(state, learning_rate=jnp.array(0.5))
    assert learning_rate(update(START, state, START)[1]) == 0.5
    for techniques in ({}, EVERY, {**EVERY, "state_dtype": "bfloat16"}):
        tx = compose(optax.scale_by_rms(), 0.1, **techniques)  # a core that does not count
        state, update = jax.jit(tx.init)(START), jax.jit(tx.update)
        for count in range(3):
            assert int(optax.tree.get(state, "count")) == count
            _, state = update(START, state, START, value=1.0)


# --- None of it, and several ----------------------------------------------------------------------

NONE, TWO = optax.sgd(0.1), optax.chain(TX, TX)
SAME_LEAF_TWICE = optax.partition(
    {"a": optax.chain(TX, TX), "b": optax.sgd(0.1)}, {"kernel": "a", "bias": "b"}
)
TWO_GROUPS = optax.partition({"a": TX, "b": TX}, {"kernel": "a", "bias": "b"})
SOURCES = {
    averaged_params: r"averaged weights.*average_weights \(average_start=\.\.\.\)",
    slow_params: r"slow weights.*lookahead \(sync_period=\.\.\.\)",
    metrics: r"metrics.*record_metrics=True",
}


@pytest.mark.parametrize("read", SOURCES)
def test_none_and_two_are_errors_that_say_where_one_comes_from(read):
    how = SOURCES[read]
    with pytest.raises(ValueError, match=f"one set of .* got no {how}"):
        read(NONE.init(START))
    with pytest.raises(ValueError, match="got no"):
        read(())
    per_run = (TWO_GROUPS,) if read is metrics else ()  # not one a leaf
    for tx in (TWO, SAME_LEAF_TWICE, *per_run):
        with pytest.raises(ValueError, match=f"one set of .* got 2 sets of {how}"):
            read(tx.init(START))


def test_the_learning_rate_is_that_of_one_optimizer():
    message = "state of one optimizer of amac_jax, such as amac, got {} of them; {}"
    for tx, number, hint in [
        (NONE, "none", "Optax's optimizers"),
        (
            amac_jax.scale_by_amac(10),
            "none",
            "Optax's optimizers, and chains such as one with scale_by_a",
        ),
        (TWO, 2, "of several"),
        (SAME_LEAF_TWICE, 2, "of several"),
        (TWO_GROUPS, 2, "of several"),
    ]:
        with pytest.raises(ValueError, match=message.format(number, hint)):
            learning_rate(tx.init(START))
    assert learning_rate(TWO_GROUPS.init(START).inner_states["a"]) == 0.0


@pytest.mark.parametrize("read", [averaged_params, slow_params, metrics])
def test_an_optimizer_without_the_technique_has_none(read):
    with pytest.raises(ValueError, match=f"one set of .* got no {SOURCES[read]}"):
        read(sgd(0.1).init(START))


def test_the_groups_of_a_partition_are_joined():
    """Each group with techniques of its own, and a third without any."""
    like = {**LIKE, "scale": np.zeros(2, np.float32)}
    start, *gradients = normals(5, like, 7)
    groups = {
        "kernels": sgd(0.1, sync_period=2, average_start=2),
        "biases": adam(0.01, sync_period=3, slow_step_size=0.3, average_start=4),
        "rest": optax.sgd(0.5),
    }
    labels = {"kernel": "kernels", "bias": "biases", "scale": "rest"}
    tx = optax.partition(groups, labels)
    alone = {
        name: list(train(groups[group], {name: start[name]}, [{name: g[name]} for g in gradients]))
        for name, group in labels.items()
    }
    steps = list(train(tx, start, gradients))
    for step, (params, state) in enumerate(steps):
        expected, slow = {"scale": params["scale"]}, {"scale": optax.MaskedNode()}
        accumulators = {"scale": optax.MaskedNode()}
        for name in ("kernel", "bias"):
            own_params, own = alone[name][step]
            expected |= averaged_params(own, own_params)
            accumulators |= averaged_params(own)
            slow |= slow_params(own)
        # At the second and third step one group's average has begun and the other's has not.
        assert_close(averaged_params(state, params), expected)
        assert_close(averaged_params(state), accumulators)
        assert_close(slow_params(state), slow)
        assert_same_bits(averaged_params(state, params)["scale"], params["scale"])
        if step in (1, 2):
            assert_same_bits(averaged_params(state, params)["bias"], params["bias"])
            assert_same_bits(averaged_params(state)["bias"], start["bias"])
    params, state = steps[-1]
    difference = np.asarray(averaged_params(state, params)["bias"]) - np.asarray(params["bias"])
    assert np.max(np.abs(difference)) > 1e-3
    for group in ("kernels", "biases"):
        assert learning_rate(state.inner_states[group]) > 0


@pytest.mark.parametrize("params", [{"kernel": START["kernel"]}, START["kernel"], [START]])
def test_params_of_another_structure_are_refused(params):
    message = "params must be the tree that the optimizer was given at init"
    with pytest.raises(ValueError, match=message):
        averaged_params(STATE, params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_with_params_it_is_they_before_the_first_average_and_has_their_dtypes(dtype):
    start, *gradients = jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf).astype(dtype)), [START, *GRADIENTS[:2]]
    )
    (first, before), (last, after) = train(TX, start, gradients)
    assert_same_bits(averaged_params(before, first), first)
    average = averaged_params(after, last)
    chex.assert_trees_all_equal_shapes_and_dtypes(average, last)
    assert_close(average, last, 1e-2)  # the mean of one
    chex.assert_trees_all_equal_shapes_and_dtypes(averaged_params(after), START)
    read = jax.jit(averaged_params)  # which of the two it is may be traced
    assert_same_bits(read(before, first), first)
    assert_same_bits(read(after, last), average)


def test_what_is_kept_from_the_average_is_the_parameters_own():
    labels = {"kernel": "averaged", "bias": "not"}
    tx = optax.partition({"averaged": TX, "not": optax.sgd(0.1)}, labels)
    *_, (params, state) = train(tx, START, GRADIENTS)
    assert averaged_params(state)["bias"] == optax.MaskedNode()
    average = averaged_params(state, params)
    assert_close(average["kernel"], averaged_params(STATE)["kernel"])
    assert_same_bits(average["bias"], params["bias"])


# --- The values of metrics ------------------------------------------------------------------------


def norm(tree: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree))))


@pytest.mark.parametrize("seed", range(2))
def test_every_metric_by_hand(seed):
    rates, sigmas = [0.1, 0.2, 0.05, 0.1, 0.3], [0.5, 0.4, 0.3, 0.2, 0.1]
    decay = jnp.array([0.1, 0.0, 0.3, 0.2, 0.1])
    b1, b2, eps, mu, limit, k, alpha, start = 0.8, 0.9, 1e-8, 0.7, 0.9, 2, 0.4, 3
    tx = compose(
        optax.scale_by_adam(b1, b2, eps),
        lambda count: jnp.array(rates)[count],
        noise=lambda count: jnp.array(sigmas)[count],
        sampler=lambda key, count, like: jax.tree.map(jnp.ones_like, like),
        clip_value=limit,
        momentum=mu,
        weight_decay=lambda count: decay[count],
        sync_period=k,
        slow_step_size=alpha,
        average_start=start,
        record_metrics=True,
    )
    params, *gradients = normals(seed, {"kernel": jnp.zeros((6, 5))}, 6)
    steps = train(tx, params, gradients)
    theta = slow = float64(params)["kernel"]
    m = v = velocity = np.zeros_like(theta)
    clipped = []
    for t, (gradient, (_, state)) in enumerate(zip(gradients, steps, strict=True), 1):
        g, rate = float64(gradient)["kernel"], rates[t - 1]
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        d = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps) + sigmas[t - 1]
        clipped.append(np.mean(np.abs(d) > limit))
        velocity = mu * velocity - rate * np.clip(d, -limit, limit)
        after = theta + velocity - rate * float(decay[t - 1]) * theta
        if t % k == 0:
            after = slow = slow + alpha * (after - slow)
        expected = {
            "grad_norm": norm(g),
            "update_norm": norm(after - theta),
            "param_norm": norm(theta),
            "update_ratio": norm(after - theta) / norm(theta),
            "learning_rate": rate,
            "weight_decay": float(decay[t - 1]),
            "noise_scale": sigmas[t - 1],
            "clip_fraction": clipped[-1],
            "first_moment_norm": norm(m),
            "second_moment_norm": norm(v),
            "momentum_norm": norm(velocity),
            "slow_distance": norm(after - slow),
            "averaged_count": max(0, t - start + 1),
        }
        recorded = metrics(state)
        assert recorded.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(recorded[name], value, 2e-5, 1e-6, err_msg=name)
        theta = after
    assert 0 < np.mean(clipped) < 1


def test_metrics_of_bfloat16_training_are_those_of_float32():
    params = {"kernel": np.full((300, 100), 10, jnp.bfloat16)}  # its norm's square stalls
    tx = sgd(0.5, record_metrics=True)
    _, state = jax.jit(tx.update)(params, jax.jit(tx.init)(params), params)
    assert_close(metrics(state)["grad_norm"], np.sqrt(30_000) * 10)
    assert_close(metrics(state)["update_ratio"], np.array(0.5))


def test_update_ratio_of_parameters_that_are_all_zero_is_finite():
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    tx = sgd(0.5, record_metrics=True)
    _, state = jax.jit(tx.update)(ones, tx.init(zeros), zeros)
    assert metrics(state)["update_ratio"] == metrics(state)["update_norm"] == 1.0


def test_parameters_may_be_called_as_the_states_are():
    names = ("mu", "nu", "slow", "velocity", "averaged", "count")
    renamed = {name: np.full((2, 2), float(i), np.float32) for i, name in enumerate(names, 1)}
    plain = dict(zip("abcdef", renamed.values(), strict=True))
    tx = adam(0.1, sync_period=3, average_start=1, record_metrics=True)
    update = jax.jit(tx.update)
    _, state = update(renamed, tx.init(renamed), renamed)
    _, expected = update(plain, tx.init(plain), plain)
    assert "momentum_norm" not in metrics(state)
    assert_close(metrics(state), metrics(expected))


RECORDING = amac(
    0.1, 10, **EVERY_TECHNIQUE, record_metrics=True, skip_nonfinite=True, clip_norm=1.0
)
NAMES = {
    "grad_norm", "update_norm", "param_norm", "update_ratio", "learning_rate", "weight_decay",
    "noise_scale", "clip_fraction", "first_moment_norm", "second_moment_norm", "momentum_norm",
    "slow_distance", "averaged_count", "skipped_steps",
}  # fmt: skip


def test_structure_is_that_of_init_at_every_step():
    empty = metrics(RECORDING.init(START))
    assert empty.keys() == NAMES
    assert all(value == 0 for value in empty.values())
    for _, state in train(RECORDING, START, GRADIENTS):
        chex.assert_trees_all_equal_shapes_and_dtypes(metrics(state), empty)
        assert all(value.shape == () for value in metrics(state).values())
        assert {value.dtype.name for value in metrics(state).values()} == {"float32"}


@pytest.mark.usefixtures("promoting")
def test_metrics_of_every_step_come_out_of_scan_vmap_and_multi_steps():
    gradients = jax.tree.map(lambda *leaves: np.stack(leaves), *GRADIENTS)

    def run(rate, tx=None):
        tx = sgd(rate, **TECHNIQUES) if tx is None else tx

        def step(carry, gradient):
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), metrics(state)

        return jax.lax.scan(step, (START, tx.init(START)), gradients)[1]

    expected = [metrics(state) for _, state in train(TX, START, GRADIENTS)]
    expected = jax.tree.map(lambda *values: np.stack(values), *expected)
    assert_close(jax.jit(run)(0.1), expected)
    swept = jax.jit(jax.vmap(run))(jnp.array([0.3, 0.1]))
    assert_close(jax.tree.map(lambda values: np.asarray(values)[1], swept), expected)
    micro = jax.jit(lambda: run(0.1, optax.MultiSteps(TX, 2).gradient_transformation()))()
    assert (np.asarray(micro["learning_rate"]) > 0).tolist() == [False] + [True] * 5
    means = [
        (g + h) / 2 for g, h in zip(gradients["bias"][::2], gradients["bias"][1::2], strict=True)
    ]
    kernels = (gradients["kernel"][::2] + gradients["kernel"][1::2]) / 2
    norms = [norm(float64((kernel, bias))) for kernel, bias in zip(kernels, means, strict=True)]
    assert_close(micro["grad_norm"], np.array([0, *np.repeat(norms, 2)[:-1]]))


# --- Steps that are skipped -----------------------------------------------------------------------


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_but_a_counter(bad):
    bias = np.array(GRADIENTS[0]["bias"])
    bias[1] = bad
    broken = {**GRADIENTS[0], "bias": jnp.asarray(bias)}
    healthy = list(train(RECORDING, START, GRADIENTS))
    sequence = [*GRADIENTS[:3], broken, broken, *GRADIENTS[3:]]
    with_broken = list(train(RECORDING, START, sequence))
    for skipped in (1, 2):
        (params, state), (expected, before) = with_broken[2 + skipped], healthy[2]
        assert_same_bits(params, expected)
        assert_same_bits(state.inner_state, before.inner_state)
        assert_same_bits(averaged_params(state, params), averaged_params(before, expected))
        recorded = metrics(state)
        assert recorded.pop("skipped_steps") == skipped
        assert_same_bits(
            recorded, {n: v for n, v in metrics(before).items() if n != "skipped_steps"}
        )
    (params, state), (expected, end) = with_broken[-1], healthy[-1]
    assert_same_bits((params, state.inner_state), (expected, end.inner_state))
    assert metrics(state)["skipped_steps"] == 2


def test_every_step_may_be_skipped():
    broken = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf) * np.nan), START)
    *_, (params, state) = train(RECORDING, START, [broken] * 30)
    assert_same_bits(params, START)
    assert metrics(state)["skipped_steps"] == 30


# --- Checkpoints ----------------------------------------------------------------------------------


def restored_by_flax(state, directory):
    return serialization.from_bytes(RECORDING.init(START), serialization.to_bytes(state))


def restored_by_orbax(state, directory):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(directory / "state", RECORDING.init(START))


@pytest.mark.parametrize("restore", [restored_by_flax, restored_by_orbax])
def test_training_goes_on_from_a_checkpoint_as_if_there_were_none(restore, tmp_path):
    *_, (params, state) = train(RECORDING, START, GRADIENTS[:3])
    restored = restore(state, tmp_path)
    assert_same_bits(restored, state)
    assert_same_bits(metrics(restored), metrics(state))
    update = jax.jit(RECORDING.update)
    for gradient in GRADIENTS[3:]:
        updates, state = update(gradient, state, params)
        again, restored = update(gradient, restored, params)
        assert_same_bits(again, updates)
        params = optax.apply_updates(params, updates)
    assert_same_bits(restored, state)


def test_metrics_of_an_empty_tree_are_arrays():
    tx = amac_jax.adam(0.1, clip_value=1.0, record_metrics=True)
    _, state = tx.update({}, tx.init({}), {})
    assert all(isinstance(metric, jax.Array) for metric in metrics(state).values())
