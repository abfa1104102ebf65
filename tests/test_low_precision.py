"""State in bfloat16: the rounding, `store_state_in`, and what `state_dtype` makes of the others.

A statistical test is a function of fixed keys; its error probability is that of failing perfect
random bits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from amac_jax import average_weights, averaged_params, lookahead, slow_params, store_state_in
from amac_jax._core.random import fast_normal, random_words
from amac_jax._core.storage import narrow_stochastically, round_stochastically, storage
from amac_jax.optimizers import EVERY_TECHNIQUE
from tests.helpers import apply, assert_close, assert_same_bits, float64, normals, train

Z = 4.9  # a normal variable is farther from its mean, in standard deviations, 1 time in 10^6
MANY = 2**16
MLP = {
    name: {"kernel": jnp.zeros((rows, columns)), "bias": jnp.zeros(columns)}
    for name, rows, columns in (("in", 784, 128), ("hidden", 128, 64), ("out", 64, 10))
}
every_seed = pytest.mark.parametrize("seed", range(3))
BFLOAT16 = {"state_dtype": "bfloat16"}


def words(seed, shape):
    return random_words(jax.random.key(seed), 0, jnp.zeros(shape))


# The rounding.


@every_seed
@pytest.mark.parametrize("value", [1.002, -1.0077, 3e-39, 1.17e-38, -2.5e-7, 3.1e38])
def test_expectation_is_the_value(seed, value):
    """Error probability 2e-5 in all: 18 cases, each 10^-6."""
    value = np.float32(value)
    rounded = float64(round_stochastically(jnp.full(MANY, value), words(seed, MANY), jnp.bfloat16))
    below, above = np.unique(rounded)
    share = (float(value) - below) / (above - below)
    error = np.sqrt(share * (1 - share) / MANY)
    assert abs(np.mean(rounded == above) - share) < Z * error
    # Its neighbours in bfloat16, and no others.
    assert float(jnp.asarray(below, jnp.bfloat16)) == below
    assert float(jnp.nextafter(jnp.bfloat16(below), jnp.bfloat16(jnp.inf))) == above


@pytest.mark.parametrize("low", [0, 1, 0x8000, 0xFFFF, 0xFFFFFFFF])
def test_what_bfloat16_has_stays(low):
    """All of its numbers, infinities and NaN."""
    every = jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint16), jnp.bfloat16)
    rounded = round_stochastically(
        every.astype(jnp.float32), jnp.full(2**16, low, jnp.uint32), jnp.bfloat16
    )
    nan = jnp.isnan(every)
    assert_same_bits(rounded[~nan], every[~nan])
    assert bool(jnp.all(jnp.isnan(rounded[nan])))


@pytest.mark.parametrize("low", [0, 0xFFFF])
def test_special_numbers_are_rounded_to_nearest(low):
    nan = jax.lax.bitcast_convert_type(jnp.uint32([0x7F800001, 0x7FFFFFFF]), jnp.float32)
    largest = jax.lax.bitcast_convert_type(jnp.uint32([0x7F7F7FFF, 0x7F7FFFFF]), jnp.float32)
    x = jnp.concatenate([nan, largest, -largest, jnp.array([jnp.inf, -jnp.inf])])
    rounded = round_stochastically(x, jnp.full(x.shape, low, jnp.uint32), jnp.bfloat16)
    np.testing.assert_array_equal(float64(rounded), float64(x.astype(jnp.bfloat16)))
    assert np.isfinite(float64(rounded)[2])


@every_seed
def test_leaves_stages_and_noise_have_bits_of_their_own(seed):
    """Halfway between neighbours up is a fair coin; error probability 4e-6 in all."""
    half = jnp.full(MANY, 1 + 2**-8)

    def coins(key, count=0):
        key = jax.random.wrap_key_data(storage("state_dtype", "bfloat16", key).key_data())
        both = narrow_stochastically({"mu": half, "nu": half}, "bfloat16", key, count)
        return [np.asarray(x) > 1 for x in (both["mu"], both["nu"])]

    noise = fast_normal(jax.random.key(seed), 0, [half, half])
    columns = [*coins(seed), *coins(seed, 1), *coins(seed + 10), *(n > 0 for n in noise)]
    signs = 2.0 * np.asarray(columns) - 1
    correlations = (signs @ signs.T - MANY * np.eye(len(signs))) / np.sqrt(MANY)
    assert np.max(np.abs(correlations)) < 5.5  # 28 pairs, each 4e-8


def test_stages_of_the_pipeline_round_with_keys_of_their_own():
    state = amac_jax.amac(0.1, 10, **EVERY_TECHNIQUE, **BFLOAT16).init(MLP)
    found = optax.tree.get_all_with_path(state, "key")
    keys = {tuple(np.asarray(key).tolist()) for _, key in found}
    assert len(found) == len(keys) == 5  # noise, core, momentum, lookahead, averaging


# What does not stall.


@pytest.mark.usefixtures("promoting")
@every_seed
def test_a_moving_average_of_thousand_increments_is_not_lost(seed):
    """Second moments of constant gradients: 1,000 increments, each from nu to nu + (g^2 - nu)/1000.

    Every element, not only their mean: fresh bits at every step would leave 3 %.
    """
    (gradient,) = normals(seed, jnp.zeros(4096))
    core = optax.scale_by_adam(b2=0.999)

    def final(tx, state):
        def step(state, _):
            return tx.update(gradient, state)[1], None

        return jax.jit(lambda state: jax.lax.scan(step, state, None, 1000)[0])(state)

    exact = float64(final(core, core.init(gradient)).nu)
    tx = store_state_in(core, "bfloat16", key=seed)
    ours = final(tx, tx.init(gradient)).inner.inner.nu
    assert ours.dtype == jnp.bfloat16
    ours = float64(ours)
    assert abs(np.sum(ours) / np.sum(exact) - 1) < 0.002
    assert np.sqrt(np.mean((ours / exact - 1) ** 2)) < 0.01

    def to_nearest(nu, _):
        nu = 0.999 * nu.astype(jnp.float32) + 0.001 * gradient**2
        return nu.astype(jnp.bfloat16), None

    stalled = jax.lax.scan(to_nearest, jnp.zeros(4096, jnp.bfloat16), None, 1000)[0]
    assert np.sum(float64(stalled)) / np.sum(exact) < 0.5


@every_seed
@pytest.mark.parametrize("decay", [None, 0.999])
def test_an_average_of_thousand_weights_is_not_lost(seed, decay):
    """Weights that drift away by a tenth: snapshot n moves the average by 1/n of the distance."""
    (scale,) = normals(seed, jnp.zeros(4096))
    weights = scale * jnp.linspace(1.0, 1.1, 1000)[:, None]

    def average(**keywords):
        tx = average_weights(decay=decay, **keywords)

        def step(state, params):
            return tx.update(jnp.zeros_like(params), state, params)[1], None

        return jax.lax.scan(step, tx.init(weights[0]), weights)[0].inner.average

    exact, ours = float64(average()), average(state_dtype="bfloat16", key=seed)
    assert ours.dtype == jnp.bfloat16
    relative = float64(ours) / exact - 1
    assert abs(np.mean(relative)) < 0.001  # of what is some 0.05 from where it began
    assert np.sqrt(np.mean(relative**2)) < 0.01

    def to_nearest(carry, params):
        n, old = carry
        old = old.astype(jnp.float32)
        share = 1 / n if decay is None else jnp.maximum(1 / n, 1 - decay)
        return (n + 1, (old + share * (params - old)).astype(jnp.bfloat16)), None

    first = 1.0, weights[0].astype(jnp.bfloat16)
    stalled = float64(jax.lax.scan(to_nearest, first, weights)[0][1])
    assert abs(np.mean(stalled / exact - 1)) > 0.01


def test_velocity_does_not_stall():
    """With decay 0.999 and dampening 0.999 every increment is below half a unit of bfloat16."""
    tx = amac_jax.heavy_ball(0.999, dampening=0.999)
    ones = jnp.ones(256)
    exact, state = (
        jax.lax.fori_loop(
            0, 300, lambda _, state, each=each: each.update(ones, state)[1], each.init(ones)
        )
        for each in (tx, store_state_in(tx, "bfloat16"))
    )
    ratio = float64(state.inner.inner.velocity) / float64(exact.inner.velocity)
    assert abs(np.mean(ratio) - 1) < 0.01


# The transformations.


@pytest.mark.usefixtures("promoting")
def test_a_wrapped_adam_steps_as_adam_does():
    init, *gradients = normals(0, MLP["out"], 31)
    wrapped = list(train(store_state_in(optax.adam(0.01), "bfloat16"), init, gradients))
    plain = list(train(optax.adam(0.01), init, gradients))
    assert_same_bits(wrapped[0][0], plain[0][0])  # from zeros
    moved = jax.tree.map(lambda a, b: a - b, float64(plain[-1][0]), float64(init))
    error = jax.tree.map(lambda a, b: a - b, float64(wrapped[-1][0]), float64(plain[-1][0]))
    assert 0 < optax.tree.norm(error) < 0.02 * optax.tree.norm(moved)


@pytest.mark.usefixtures("promoting")
def test_a_step_is_the_inner_step_on_the_widened_state_rounded():
    init, *gradients = normals(0, MLP["out"], 4)
    inner = optax.scale_by_adam()
    tx = store_state_in(inner, "bfloat16", key=3)
    *_, (params, state) = train(tx, init, gradients)
    stored = state.inner.inner
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.ndim else x, stored)
    expected, after = inner.update(gradients[0], wide, params)
    updates, new = tx.update(gradients[0], state, params)
    assert_same_bits(updates, expected)
    assert int(state.count) == int(stored.count) == 3
    assert_same_bits(new.inner.inner.count, after.count)
    for ours, exact in zip(jax.tree.leaves(new.inner.inner), jax.tree.leaves(after), strict=True):
        gap = np.abs(float64(ours) - float64(exact))
        assert np.all(gap < 2.0**-7 * np.abs(float64(exact)) + 1e-30)


def test_scalars_integers_and_keys_stay_as_they_are():
    inner = optax.chain(optax.trace(0.9), optax.add_noise(0.1, 0.5, jax.random.key(1)))
    params = {"kernel": jnp.ones((2, 2)), "temperature": jnp.array(1.0)}
    tx = store_state_in(inner, "bfloat16")
    _, state = apply(tx, params, steps=2)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype.name, state.inner.inner)
    assert dtypes[0].trace == {"kernel": "bfloat16", "temperature": "float32"}
    assert dtypes[1] == jax.tree.map(lambda leaf: leaf.dtype.name, inner.init(params)[1])


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("off", [None, "float32", jnp.float32])
def test_off_is_absent_bit_for_bit(off):
    init, *gradients = normals(0, MLP["out"], 8)
    pairs = [
        (
            amac_jax.amac(0.1, 8, **EVERY_TECHNIQUE, state_dtype=off),
            amac_jax.amac(0.1, 8, **EVERY_TECHNIQUE),
        ),
        (store_state_in(optax.adam(0.1), off), optax.adam(0.1)),
        (lookahead(2, state_dtype=off), lookahead(2)),
        (average_weights(state_dtype=off), average_weights()),
    ]
    for one, other in pairs:
        (*_, ours), (*_, expected) = (train(tx, init, gradients) for tx in (one, other))
        assert_same_bits(ours, expected)


def test_slow_weights_are_where_the_parameters_land_rounded():
    init, *gradients = normals(0, MLP["out"], 6)
    tx = optax.chain(optax.sgd(0.1), lookahead(3, 0.5, **BFLOAT16))
    slow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), init)
    for t, (params, state) in enumerate(train(tx, init, gradients), 1):
        if t == 3:  # the fast weights are computed beside it
            fast = jax.tree.map(lambda p, *g: p - 0.1 * sum(g), init, *gradients[:3])
            assert_close(params, jax.tree.map(lambda s, f: (s + f) / 2, float64(slow), fast))
        if t % 3 == 0:
            gaps = jax.tree.map(
                lambda s, p: np.abs(s / p - 1), float64(slow_params(state)), float64(params)
            )
            assert 0 < max(np.max(gap) for gap in jax.tree.leaves(gaps)) < 2.0**-7
            slow = slow_params(state)
        else:
            assert_same_bits(slow_params(state), slow)


@pytest.mark.parametrize("build", [lookahead, average_weights])
def test_random_bits_are_drawn_only_when_they_are_used(build):
    params = jnp.ones((4, 3))
    tx = build(**BFLOAT16)
    jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params)
    outside = [eqn for eqn in jaxpr.eqns if eqn.primitive.name != "cond"]
    assert len(outside) == len(jaxpr.eqns) - 1
    assert " xor " in str(jaxpr)
    assert not [eqn for eqn in outside if " xor " in str(eqn)]


def test_bytes_of_state():
    tx = amac_jax.amac(4e-3, 1000, **EVERY_TECHNIQUE, **BFLOAT16)
    state = jax.eval_shape(tx.init, MLP)
    count = optax.tree.size(MLP)
    sizes = [(leaf.size * leaf.dtype.itemsize, leaf.ndim) for leaf in jax.tree.leaves(state)]
    of_parameters = sum(size for size, _ in sizes if size > 8)
    assert of_parameters == 10 * count
    assert sum(size for size, _ in sizes) - of_parameters < 100  # counts and keys


def test_what_is_in_the_state_is_found():
    params, gradient = normals(0, MLP["out"], 2)
    every = {**EVERY_TECHNIQUE, "average_start": 1, "average_period": 1, "record_metrics": True}
    tx = amac_jax.amac(0.1, 4, **every, **BFLOAT16)
    _, state = apply(tx, gradient, params, steps=1)
    _, reference = apply(amac_jax.amac(0.1, 4, **every), *(gradient, params))
    ours, theirs = amac_jax.metrics(state), amac_jax.metrics(reference)
    assert set(ours) == set(theirs)
    assert {"first_moment_norm", "second_moment_norm", "momentum_norm"} <= set(ours)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0.01, atol=0.02)
    assert slow_params(state)["kernel"].dtype == jnp.bfloat16
    assert averaged_params(state)["kernel"].dtype == jnp.bfloat16
    averages = averaged_params(state, params), averaged_params(reference, params)
    gaps = jax.tree.map(lambda a, b: np.max(np.abs(a / b - 1)), *averages)
    assert max(jax.tree.leaves(gaps)) < 2.0**-7


def test_restarts_round_alike_and_keys_do_not():
    (gradient,) = normals(0, MLP["out"], 1)

    def velocity(key):
        _, state = apply(store_state_in(optax.trace(0.9), "bfloat16", key=key), gradient, steps=3)
        return state.inner.inner

    assert_same_bits(velocity(1), velocity(jax.random.key(1)))
    with pytest.raises(AssertionError):
        assert_same_bits(velocity(1), velocity(2))


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "nothing", 7])
def test_other_dtypes_are_refused(dtype):
    for name, build in (
        ("dtype", lambda: store_state_in(optax.adam(0.1), dtype)),
        ("state_dtype", lambda: lookahead(state_dtype=dtype)),
        ("state_dtype", lambda: average_weights(state_dtype=dtype)),
        ("state_dtype", lambda: amac_jax.adam(0.1, state_dtype=dtype)),
    ):
        message = f"^{name} must be None, 'float32' or 'bfloat16', got {dtype!r}$"
        with pytest.raises(ValueError, match=message):
            build()


@pytest.mark.parametrize("tx", [None, "adam", optax.adam])
def test_what_is_no_transformation_is_refused(tx):
    with pytest.raises(ValueError, match="tx must be a gradient transformation, got"):
        store_state_in(tx, "bfloat16")
