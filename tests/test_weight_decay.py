"""`decay_weights` against its equation, and against `optax.adamw`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from amac_jax import adamw, compose, decay_weights, kernel_mask
from tests.helpers import apply, assert_close, assert_same_bits, float64, normals, train

LIKE = {
    "dense": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)},
    "norm": {"scale": jnp.zeros(3)},
    "embed": {"embedding": jnp.zeros((5, 2))},
}
KERNELS = {
    "dense": {"kernel": True, "bias": False},
    "norm": {"scale": False},
    "embed": {"embedding": False},
}
EVERYTHING = jax.tree.map(lambda _: True, KERNELS)
NOTHING = jax.tree.map(lambda _: False, KERNELS)
DENSE = {**NOTHING, "dense": {"kernel": True, "bias": True}}


@pytest.mark.parametrize(
    ("mask", "decays"),
    [
        (None, KERNELS),
        (KERNELS, KERNELS),
        (kernel_mask, KERNELS),
        (True, EVERYTHING),
        (False, NOTHING),
        ({"dense": True, "norm": False, "embed": False}, DENSE),
        (lambda params: {"dense": True, "norm": False, "embed": False}, DENSE),
        (lambda params: jax.tree.map(lambda p: p.ndim == 1, params),
         {"dense": {"kernel": False, "bias": True}, "norm": {"scale": True},
          "embed": {"embedding": False}}),
    ],
    ids=["default", "tree", "rule", "True", "False", "prefix", "prefix of params", "of params"],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(2))
def test_every_form_of_mask(seed, mask, decays):
    params, *updates = normals(seed, LIKE, 5)
    expected = float64(params)
    steps = train(decay_weights(0.1, mask=mask), params, updates)
    for update, (params, _) in zip(updates, steps, strict=True):
        expected = jax.tree.map(
            lambda p, u, decay: p + u - 0.1 * decay * p, expected, float64(update), decays
        )
        assert_close(params, expected, 3e-6)


def test_what_does_not_decay_passes_bit_for_bit():
    params, updates = normals(0, LIKE, 2)
    decayed, _ = apply(decay_weights(0.1), updates, params)
    updates["dense"]["kernel"] = decayed["dense"]["kernel"]
    assert_same_bits(decayed, updates)


class Equinox(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, x):
        raise AssertionError("a mask is not a function because its class can be called")


@pytest.mark.parametrize("as_tree", [False, True])
def test_an_equinox_module_is_a_tree_though_it_can_be_called(as_tree):
    params = Equinox(eqx.nn.Linear(3, 2, key=jax.random.key(0)))
    mask = kernel_mask(params) if as_tree else None
    assert callable(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = apply(decay_weights(0.5, mask=mask), zeros, params)
    assert_close(updates.linear.weight, -0.5 * float64(params.linear.weight))
    assert_same_bits(updates.linear.bias, zeros.linear.bias)


def test_the_rate_is_scheduled_by_the_count_of_updates():
    rates = jnp.array([0.0, 0.5, 0.1])
    tx = decay_weights(lambda count: rates[count], mask=True)
    zeros = [jnp.zeros(2)] * 3
    weights = [params for params, _ in train(tx, jnp.ones(2), zeros)]
    assert_close(jnp.stack(weights)[:, 0], np.array([1.0, 0.5, 0.45]))


def test_rates_too_small_for_bfloat16_are_not_rounded_to_its_steps():
    params, updates = jnp.full(2, 3.0, jnp.bfloat16), jnp.full(2, 0.3, jnp.bfloat16)
    decayed, _ = apply(decay_weights(0.1003, mask=True), updates, params)
    assert_same_bits(decayed, jnp.asarray(float64(updates) - 0.3009, jnp.bfloat16))


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("seed", range(2))
def test_adamw_with_decay_on_everything_is_optax_adamw_for_100_steps(seed):
    params, *gradients = normals(seed, LIKE, 101)
    ours = train(adamw(0.01, weight_decay=0.1, decay_mask=True), params, gradients)
    theirs = train(optax.adamw(0.01, weight_decay=0.1), params, gradients)
    for (params, _), (expected, _) in zip(ours, theirs, strict=True):
        assert_close(params, expected)


def test_adamw_decays_kernels_only():
    params = next(normals(0, LIKE))
    zeros = [jax.tree.map(jnp.zeros_like, params)] * 20
    *_, (after, _) = train(adamw(0.1, weight_decay=0.5), params, zeros)
    assert_close(after["dense"]["kernel"], 0.95**20 * float64(params["dense"]["kernel"]))
    after["dense"]["kernel"] = params["dense"]["kernel"]
    assert_same_bits(after, params)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_decay_is_not_carried_along_by_momentum(momentum):
    params = jnp.ones((2, 2))
    rates = jnp.array([0.1, 0.2, 0.0, 0.0])
    tx = compose(optax.identity(), lambda count: rates[count], weight_decay=0.5, momentum=momentum)
    weights = [after for after, _ in train(tx, params, [jnp.zeros((2, 2))] * 4)]
    # eta lambda: 0.05, 0.1, 0, 0. Carried along, the weights would go on shrinking.
    assert_close(jnp.stack(weights)[:, 0, 0], np.array([0.95, 0.855, 0.855, 0.855]))


def test_compose_decays_what_its_rule_calls_a_kernel():
    params = {"blocks": jnp.ones((2, 3)), "head": jnp.ones((3, 4))}  # a stack of vectors, a matrix
    gradients = jax.tree.map(jnp.zeros_like, params)
    for rule, decays in ((None, True), (amac_jax.stacked("blocks"), False)):
        tx = amac_jax.sgd(0.5, weight_decay=0.1, fan_in_axes=rule)
        updates, _ = tx.update(gradients, tx.init(params), params)
        assert bool(jnp.all(updates["blocks"] != 0)) == decays
        np.testing.assert_allclose(updates["head"], -0.05)
