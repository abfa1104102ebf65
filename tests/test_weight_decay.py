"""`decay_weights` against its equations, and against `optax.adamw`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from amac_jax import adamw, compose, decay_weights, kernel_mask
from amac_jax.techniques import DecayWeightsState
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


def test_the_share_that_a_step_removes_is_at_most_all():
    params, zeros = jnp.array([2.0, -3.0]), jnp.zeros(2)
    for tx in (
        decay_weights(1.5, mask=True),
        decay_weights(1.5, mask=True, cautious=0.0, floor=0.0),
        compose(optax.identity(), 0.5, weight_decay=3.0, decay_mask=True),
    ):
        updates, _ = apply(tx, zeros, params)
        np.testing.assert_array_equal(params + updates, [0.0, 0.0])


# --- Cautious -------------------------------------------------------------------------------------


def test_a_weight_that_its_update_does_not_shrink_is_spared_by_hand():
    params = jnp.array([2.0, 2.0, 2.0, -2.0, -2.0, 0.0])
    updates = jnp.array([1.0, -1.0, 0.0, -1.0, 1.0, 1.0])
    spared = np.array([1, 0, 1, 1, 0, 1])  # it grows, shrinks, stays, grows, shrinks, is 0
    for strength, part in ((1.0, 1.0), (True, 1.0), (0.75, 0.75), (0.0, 0.0), (False, 0.0)):
        decayed, _ = apply(decay_weights(0.5, mask=True, cautious=strength), updates, params)
        expected = float64(updates) - 0.5 * (1 - part * spared) * float64(params)
        assert_close(decayed, expected)


def test_a_complex_weight_shrinks_where_its_update_points_back():
    params = jnp.array([1 + 1j, 1 + 1j, 2j], jnp.complex64)
    updates = jnp.array([-1j, 1 - 1j, 2.0 - 1e-3j], jnp.complex64)  # Re: -1, 0 and -2e-3
    decayed, _ = apply(decay_weights(0.5, mask=True, cautious=1.0), updates, params)
    expected = np.array([-1j - 0.5 * (1 + 1j), 1 - 1j, 2.0 - 1e-3j - 1j])
    np.testing.assert_allclose(decayed, expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_cautious_adamw_is_the_papers_equation(seed, strength):
    """Chen et al., algorithm 1 for AdamW, at a scheduled rate, with the part s of its caution."""
    params, *gradients = normals(seed, {"kernel": jnp.zeros((4, 3))}, 30)
    rates = 0.1 / np.arange(1, 30)
    tx = adamw(lambda count: jnp.asarray(rates)[count], weight_decay=2.0, cautious_decay=strength)
    theta, m, v = float64(params)["kernel"], 0.0, 0.0
    for t, (gradient, (after, _)) in enumerate(
        zip(gradients, train(tx, params, gradients), strict=True), 1
    ):
        g = float64(gradient)["kernel"]
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        d = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        decay = np.where(d * theta > 0, 1.0, 1.0 - strength)
        theta = theta - rates[t - 1] * (d + 2.0 * decay * theta)
        assert_close(after["kernel"], theta, 2e-5)


def test_cautious_decay_of_weights_without_updates_does_nothing():
    params = next(normals(0, LIKE))
    zeros = [jax.tree.map(jnp.zeros_like, params)] * 5
    *_, (after, _) = train(decay_weights(0.5, cautious=1.0), params, zeros)
    assert_same_bits(after, params)


# --- Down to a floor ------------------------------------------------------------------------------


def with_floor(params, updates, share, rho):
    """The equation in NumPy, for one leaf: the weights after each step."""
    theta = first = float64(params)
    n = np.nan
    for count, u in enumerate(updates):
        n = np.linalg.norm(theta) if count % 20 == 0 else n
        most = 1 - (rho * np.linalg.norm(first) / n) ** (1 / 20)
        theta = theta + float64(u) - np.clip(most, 0.0, share) * theta
        yield theta


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.95])
def test_the_floor_is_the_equation(seed, rho):
    params, *updates = normals(seed, LIKE, 50)
    updates = [jax.tree.map(lambda u: 0.1 * u, update) for update in updates]
    steps = train(decay_weights(0.2, mask=True, floor=rho), params, updates)
    leaves = [jax.tree.leaves(tree) for tree in (params, *updates)]
    expected = [with_floor(first, rest, 0.2, rho) for first, *rest in zip(*leaves, strict=True)]
    for (after, _), thetas in zip(steps, zip(*expected, strict=True), strict=True):
        assert_close(jax.tree.leaves(after), [*thetas], 3e-6)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("rho", [0.3, 0.9])
def test_without_updates_a_kernel_shrinks_to_the_floor_and_stays(seed, rho):
    params = next(normals(seed, LIKE))
    zeros = [jax.tree.map(jnp.zeros_like, params)] * 40
    first = float64(params)["dense"]["kernel"]
    steps = list(train(decay_weights(0.1, floor=rho), params, zeros))
    norms = [np.linalg.norm(float64(after)["dense"]["kernel"]) for after, _ in steps]
    shares = np.array(norms) / np.linalg.norm(first)
    assert np.all(shares >= rho * (1 - 1e-6))
    assert shares[-1] == pytest.approx(max(rho, 0.9**40), rel=1e-5)
    after, state = steps[-1]
    assert_close(after["dense"]["kernel"], shares[-1] * first, 1e-5)
    after["dense"]["kernel"] = params["dense"]["kernel"]
    assert_same_bits(after, params)
    assert_close(state.inner.first_norms, np.array([np.linalg.norm(first)]))


def test_a_leaf_that_its_updates_took_below_the_floor_does_not_decay():
    params, update = jnp.array([3.0, 4.0]), jnp.array([0.1, 0.2])
    tx = decay_weights(0.5, mask=True, floor=0.8)
    decayed, _ = tx.update(update, tx.init(params), 0.7 * params)
    assert_same_bits(decayed, update)


def test_weights_that_begin_as_0_do_not_decay_and_then_have_no_floor():
    tx = decay_weights(0.5, mask=True, floor=0.9)
    state = tx.init(jnp.zeros(2))
    for params in (jnp.zeros(2), jnp.array([1.0, -2.0])):
        decayed, state = tx.update(jnp.zeros(2), state, params)
        assert_close(decayed, -0.5 * float64(params))


@pytest.mark.parametrize(("mask", "decaying"), [(None, 1), (True, 4), (DENSE, 2), (False, 0)])
def test_only_a_floor_has_state_and_only_for_what_decays(mask, decaying):
    params = next(normals(0, LIKE))
    assert decay_weights(0.1, cautious=1.0, mask=mask).init(params).inner == optax.EmptyState()
    tx = decay_weights(0.1, floor=0.5, mask=mask)
    state = tx.init(params)
    assert isinstance(state.inner, DecayWeightsState)
    assert state.inner.first_norms.shape == (decaying,)
    shapes = jax.eval_shape(lambda: params)
    for of_shapes in (jax.eval_shape(tx.init, params), tx.init(shapes)):
        assert jax.tree.map(jnp.shape, of_shapes) == jax.tree.map(jnp.shape, state)
        assert jax.tree.map(jnp.result_type, of_shapes) == jax.tree.map(jnp.result_type, state)


def test_first_norms_are_at_least_float32():
    like = {"low": jnp.full((60, 60), 300.0, jnp.float16), "high": jnp.ones((2, 2))}
    norms = decay_weights(0.1, floor=0.5).init(like).inner.first_norms
    assert norms.dtype == jnp.float32
    assert_close(norms, np.array([2.0, 18_000.0]))  # 300^2 overflows in float16


def test_a_nan_stays_in_its_element():
    params = jnp.array([[jnp.nan, 1.0]])
    tx = decay_weights(0.5, floor=0.5)
    decayed, _ = tx.update(jnp.zeros((1, 2)), tx.init(jnp.ones((1, 2))), params)
    np.testing.assert_array_equal(decayed, [[np.nan, -0.5]])


# --- Off, traced, scheduled -----------------------------------------------------------------------


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    "off", [{"cautious": 0.0}, {"cautious": False}, {"floor": 0.0}, {"cautious": 0, "floor": 0.0}]
)
def test_the_off_values_are_plain_decay_bit_for_bit(off, jit):
    params, updates = normals(0, LIKE, 2)
    plain = [p for p, _ in train(decay_weights(0.1), params, [updates] * 3, jit=jit)]
    assert_same_bits(
        [p for p, _ in train(decay_weights(0.1, **off), params, [updates] * 3, jit=jit)], plain
    )


def test_a_sweep_over_both_is_the_runs():
    params, *updates = normals(0, LIKE, 6)
    cautious, floors = np.float32([0.0, 0.5, 1.0]), np.float32([0.9, 0.0, 0.99])

    def after(cautious, floor):
        tx = decay_weights(0.2, mask=True, cautious=cautious, floor=floor)
        return [*train(tx, params, updates, jit=False)][-1][0]

    swept = jax.jit(jax.vmap(after))(cautious, floors)
    for index in range(3):
        row = jax.tree.map(lambda leaf, index=index: leaf[index], swept)
        assert_close(row, after(float(cautious[index]), float(floors[index])), 2e-6)


def test_both_may_be_schedules_of_the_count():
    params, zeros = jnp.ones((2, 2)), [jnp.zeros((2, 2))] * 3
    cautious = decay_weights(0.5, cautious=lambda count: jnp.array([1.0, 0.0, 0.5])[count])
    weights = [float(after[0, 0]) for after, _ in train(cautious, params, zeros)]
    np.testing.assert_allclose(weights, [1.0, 0.5, 0.375], rtol=1e-6)
    floored = decay_weights(0.5, floor=lambda count: jnp.array([0.9, 0.0, 0.4])[count])
    weights = [float(after[0, 0]) for after, _ in train(floored, params, zeros)]
    factors = [0.9 ** (1 / 20), 0.5, 0.4 ** (1 / 20)]  # of the norm measured before the first step
    np.testing.assert_allclose(weights, np.cumprod(factors), rtol=1e-6)
