"""State in bfloat16: the rounding, `store_state_in`, and what `state_dtype` makes of the others.

A statistical test is a function of fixed keys; its error probability is that of failing perfect
random bits.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from amac_jax import average_weights, averaged_params, lookahead, slow_params, store_state_in
from amac_jax._core.draws import fast_normal, random_words
from amac_jax._core.storage import narrow_stochastically, round_stochastically, storage
from amac_jax.optimizers import EVERY_TECHNIQUE
from tests.helpers import apply, assert_close, assert_same_bits, float64, normals, train

Z = 4.9  # a normal variable is farther from its mean, in standard deviations, 1 time in 10^6
MANY = 2**16
MLP = {
    name: {
        "kernel": jax.ShapeDtypeStruct((rows, columns), jnp.float32),
        "bias": jax.ShapeDtypeStruct((columns,), jnp.float32),
    }
    for name, rows, columns in (("in", 784, 128), ("hidden", 128, 64), ("out", 64, 10))
}
KERNEL = MLP["out"]["kernel"]
every_seed = pytest.mark.parametrize("seed", range(3))
BFLOAT16 = {"state_dtype": "bfloat16"}
# Over millions of elements a program that XLA optimizes is ten times as fast, or more.
jit_for_speed = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
rounded_with = jax.jit(functools.partial(round_stochastically, dtype=jnp.bfloat16))


@jax.jit
def rounded_at_random(values, seed):
    words = random_words(jax.random.key(seed), 0, values)
    return round_stochastically(values, words, jnp.bfloat16)


# The rounding.


@every_seed
@pytest.mark.parametrize("value", [1.002, -1.0077, 3e-39, 1.17e-38, -2.5e-7, 3.1e38])
def test_expectation_is_the_value(seed, value):
    """Error probability 2e-5 in all: 18 cases, each 10^-6."""
    value = np.float32(value)
    rounded = float64(rounded_at_random(np.full(MANY, value), seed))
    below, above = np.unique(rounded)
    share = (float(value) - below) / (above - below)
    error = np.sqrt(share * (1 - share) / MANY)
    assert abs(np.mean(rounded == above) - share) < Z * error
    # Its neighbours in bfloat16, and no others.
    below_in_bfloat16 = np.asarray(below).astype(jnp.bfloat16)
    assert float(below_in_bfloat16) == below
    assert float(np.nextafter(below_in_bfloat16, np.asarray(np.inf, jnp.bfloat16))) == above


@pytest.mark.parametrize("low", [0, 1, 0x8000, 0xFFFF, 0xFFFFFFFF])
def test_what_bfloat16_has_stays(low):
    """All of its numbers, infinities and NaN."""
    bits = np.arange(2**16, dtype=np.uint32)
    every, wide = bits.astype(np.uint16).view(jnp.bfloat16), (bits << 16).view(np.float32)
    rounded = np.asarray(rounded_with(wide, np.full(2**16, low, np.uint32)))
    nan = np.isnan(wide)
    assert_same_bits(rounded[~nan], every[~nan])
    assert np.all(np.isnan(float64(rounded[nan])))


@pytest.mark.parametrize("low", [0, 0xFFFF])
def test_special_numbers_are_rounded_to_nearest(low):
    nan = np.uint32([0x7F800001, 0x7FFFFFFF]).view(np.float32)
    largest = np.uint32([0x7F7F7FFF, 0x7F7FFFFF]).view(np.float32)
    x = np.concatenate([nan, largest, -largest, np.float32([np.inf, -np.inf])])
    rounded = rounded_with(x, np.full(x.shape, low, np.uint32))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(float64(rounded), float64(x.astype(jnp.bfloat16)))
    assert np.isfinite(float64(rounded)[2])


@jax.jit
def coins_and_noise(seed):
    half = jnp.full(MANY, 1 + 2**-8)

    def coins(key, count=0):
        key = jax.random.wrap_key_data(storage("state_dtype", "bfloat16", key).key_data())
        both = narrow_stochastically({"mu": half, "nu": half}, "bfloat16", key, count)
        return [x > 1 for x in (both["mu"], both["nu"])]

    noise = fast_normal(jax.random.key(seed), 0, [half, half])
    return [*coins(seed), *coins(seed, 1), *coins(seed + 10), *(n > 0 for n in noise)]


@every_seed
def test_leaves_stages_and_noise_have_bits_of_their_own(seed):
    """Halfway between neighbours up is a fair coin; error probability 4e-6 in all."""
    signs = 2.0 * np.asarray(coins_and_noise(seed)) - 1
    correlations = (signs @ signs.T - MANY * np.eye(len(signs))) / np.sqrt(MANY)
    assert np.max(np.abs(correlations)) < 5.5  # 28 pairs, each 4e-8


def test_stages_of_the_pipeline_round_with_keys_of_their_own():
    (params,) = normals(0, MLP["out"])
    state = jax.jit(amac_jax.amac(0.1, 10, **EVERY_TECHNIQUE, **BFLOAT16).init)(params)
    found = optax.tree.get_all_with_path(state, "key")
    keys = {tuple(np.asarray(key).tolist()) for _, key in found}
    assert len(found) == len(keys) == 5  # noise, core, momentum, lookahead, averaging


# What does not stall.


@jit_for_speed
def second_moments(gradient, seed):
    """After 1,000 steps: exact, stored in bfloat16, and rounded to nearest."""
    core = optax.scale_by_adam(b2=0.999)
    tx = store_state_in(core, "bfloat16", key=seed)

    def step(carry, _):
        exact, ours, nu = carry
        nu = 0.999 * nu.astype(jnp.float32) + 0.001 * gradient**2
        states = core.update(gradient, exact)[1], tx.update(gradient, ours)[1]
        return (*states, nu.astype(jnp.bfloat16)), None

    first = core.init(gradient), tx.init(gradient), jnp.zeros(4096, jnp.bfloat16)
    (exact, ours, stalled), _ = jax.lax.scan(step, first, None, 1000)
    return exact.nu, ours.inner.inner.nu, stalled


@pytest.mark.usefixtures("promoting")
@every_seed
def test_a_moving_average_of_thousand_increments_is_not_lost(seed):
    """Second moments of constant gradients: 1,000 increments, each from nu to nu + (g^2 - nu)/1000.

    Every element, not only their mean: fresh bits at every step would leave 3 %.
    """
    gradient = np.random.default_rng(seed).normal(size=4096).astype(np.float32)
    exact, ours, stalled = second_moments(gradient, seed)
    assert ours.dtype == jnp.bfloat16
    exact, ours, stalled = float64((exact, ours, stalled))
    assert abs(np.sum(ours) / np.sum(exact) - 1) < 0.002
    assert np.sqrt(np.mean((ours / exact - 1) ** 2)) < 0.01
    assert np.sum(stalled) / np.sum(exact) < 0.5


@functools.partial(jit_for_speed, static_argnames="decay")
def averages(scale, seed, decay):
    """Of 1,000 weights: exact, stored in bfloat16, and rounded to nearest."""
    plain = average_weights(decay=decay)
    tx = average_weights(decay=decay, state_dtype="bfloat16", key=seed)

    def step(carry, factor):
        exact, ours, n, old = carry
        params, zeros = scale * factor, jnp.zeros_like(scale)
        states = plain.update(zeros, exact, params)[1], tx.update(zeros, ours, params)[1]
        old = old.astype(jnp.float32)
        share = 1 / n if decay is None else jnp.maximum(1 / n, 1 - decay)
        return (*states, n + 1, (old + share * (params - old)).astype(jnp.bfloat16)), None

    first = plain.init(scale), tx.init(scale), 1.0, scale.astype(jnp.bfloat16)
    (exact, ours, _, stalled), _ = jax.lax.scan(step, first, jnp.linspace(1.0, 1.1, 1000))
    return exact.inner.average, ours.inner.average, stalled


@every_seed
@pytest.mark.parametrize("decay", [None, 0.999])
def test_an_average_of_thousand_weights_is_not_lost(seed, decay):
    """Weights that drift away by a tenth: snapshot n moves the average by 1/n of the distance."""
    scale = np.random.default_rng(seed).normal(size=4096).astype(np.float32)
    exact, ours, stalled = averages(scale, seed, decay)
    assert ours.dtype == jnp.bfloat16
    exact, ours, stalled = float64((exact, ours, stalled))
    relative = ours / exact - 1
    assert abs(np.mean(relative)) < 0.001  # of what is some 0.05 from where it began
    assert np.sqrt(np.mean(relative**2)) < 0.01
    assert abs(np.mean(stalled / exact - 1)) > 0.01


def test_velocity_does_not_stall():
    """With decay 0.999 and dampening 0.999 every increment is below half a unit of bfloat16."""
    plain = amac_jax.heavy_ball(0.999, dampening=0.999)
    tx = store_state_in(plain, "bfloat16")

    @jax.jit
    def after_300_steps(ones):
        def step(_, states):
            return plain.update(ones, states[0])[1], tx.update(ones, states[1])[1]

        return jax.lax.fori_loop(0, 300, step, (plain.init(ones), tx.init(ones)))

    exact, state = after_300_steps(np.ones(256, np.float32))
    ratio = float64(state.inner.inner.velocity) / float64(exact.inner.velocity)
    assert abs(np.mean(ratio) - 1) < 0.01


# The transformations.


@pytest.mark.usefixtures("promoting")
def test_a_wrapped_adam_steps_as_adam_does():
    init, *gradients = normals(0, KERNEL, 31)
    wrapped = list(train(store_state_in(optax.adam(0.01), "bfloat16"), init, gradients))
    plain = list(train(optax.adam(0.01), init, gradients))
    assert_same_bits(wrapped[0][0], plain[0][0])  # from zeros
    moved = float64(plain[-1][0]) - float64(init)
    error = float64(wrapped[-1][0]) - float64(plain[-1][0])
    assert 0 < np.linalg.norm(error) < 0.02 * np.linalg.norm(moved)


@pytest.mark.usefixtures("promoting")
def test_a_step_is_the_inner_step_on_the_widened_state_rounded():
    init, *gradients = normals(0, KERNEL, 4)
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
    params = {"kernel": np.ones((2, 2), np.float32), "temperature": np.float32(1.0)}
    tx = store_state_in(inner, "bfloat16")
    _, state = jax.eval_shape(lambda params: apply(tx, params, steps=2), params)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype.name, state.inner.inner)
    assert dtypes[0].trace == {"kernel": "bfloat16", "temperature": "float32"}
    before = jax.eval_shape(inner.init, params)[1]
    assert dtypes[1] == jax.tree.map(lambda leaf: leaf.dtype.name, before)


def after_8_steps(*txs):
    init, *gradients = normals(0, MLP["out"], 8)
    return [list(train(tx, init, gradients))[-1] for tx in txs]


@functools.cache
def without_state_dtype():
    amac = amac_jax.amac(0.1, 8, **EVERY_TECHNIQUE)
    return after_8_steps(amac, optax.adam(0.1), lookahead(2), average_weights())


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("off", [None, "float32", jnp.float32])
def test_off_is_absent_bit_for_bit(off):
    ours = after_8_steps(
        amac_jax.amac(0.1, 8, **EVERY_TECHNIQUE, state_dtype=off),
        store_state_in(optax.adam(0.1), off),
        lookahead(2, state_dtype=off),
        average_weights(state_dtype=off),
    )
    assert_same_bits(ours, without_state_dtype())


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
    count = sum(leaf.size for leaf in jax.tree.leaves(MLP))
    sizes = [(leaf.size * leaf.dtype.itemsize, leaf.ndim) for leaf in jax.tree.leaves(state)]
    of_parameters = sum(size for size, _ in sizes if size > 8)
    assert of_parameters == 10 * count
    assert sum(size for size, _ in sizes) - of_parameters < 100  # counts and keys


def test_what_is_in_the_state_is_found():
    params, gradient = normals(0, MLP["out"], 2)
    every = {**EVERY_TECHNIQUE, "average_start": 1, "average_period": 1, "record_metrics": True}

    @jax.jit
    def states(gradient, params):
        txs = amac_jax.amac(0.1, 4, **every, **BFLOAT16), amac_jax.amac(0.1, 4, **every)
        return [apply(tx, gradient, params)[1] for tx in txs]

    state, reference = states(gradient, params)
    ours, theirs = amac_jax.metrics(state), amac_jax.metrics(reference)
    assert set(ours) == set(theirs)
    assert {"first_moment_norm", "second_moment_norm", "momentum_norm"} <= set(ours)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0.01, atol=0.02)
    assert slow_params(state)["kernel"].dtype == jnp.bfloat16
    assert averaged_params(state)["kernel"].dtype == jnp.bfloat16
    averages = averaged_params(state, params), averaged_params(reference, params)
    gaps = jax.tree.map(lambda a, b: np.max(np.abs(a / b - 1)), *float64(averages))
    assert max(jax.tree.leaves(gaps)) < 2.0**-7


def test_restarts_round_alike_and_keys_do_not():
    (gradient,) = normals(0, KERNEL)

    def velocity(key):
        tx = store_state_in(optax.trace(0.9), "bfloat16", key=key)
        *_, (_, state) = train(tx, gradient, [gradient] * 3)
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
