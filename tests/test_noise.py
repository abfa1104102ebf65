"""`inject_noise`: the distribution of its fast sampler, its reproducibility, and its arithmetic.

The fast sampler is drawn from by the public route: noise of scale 1 on zeros. A statistical test
is a function of fixed keys; its error probability is that of failing a perfect generator.
"""

import functools
import math
import os
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
import scipy.special
import scipy.stats
from flax import serialization

import amac_jax
from amac_jax import inject_noise, noise_anneal
from amac_jax._core.draws import UNROLLS_THREEFRY, counter, normal
from tests import warm
from tests.helpers import SOAK, assert_same_bits

Z = 4.9  # a normal variable is farther from its mean, in standard deviations, 1 time in 10^6
MANY, MORE, SOME = 2**23, 2**22, 2**20
DTYPES = ["float32", "bfloat16", "float16"]
every_key = pytest.mark.parametrize("key", [0, 1, 2**31 - 1])
every_sampler = pytest.mark.parametrize("sampler", ["fast", "gaussian", "threefry"])


# Over millions of elements a program that XLA optimizes is ten times as fast, or more.
jit_for_speed = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
near_normal = jit_for_speed(normal._near_normal)
hashed = jit_for_speed(counter._hash)


def unjitted_draw(key, count=0, *, shape=(SOME,), leaves=1, sampler="fast"):
    """The noise that update number `count` adds to leaves of one shape."""
    tx = inject_noise(1.0, key=key, sampler=sampler)
    zeros = [jnp.zeros(shape)] * leaves
    return tx.update(zeros, tx.init(zeros)._replace(count=jnp.asarray(count, jnp.int32)))[0]


draw = jit_for_speed(unjitted_draw, static_argnames=("shape", "leaves", "sampler"))


@functools.lru_cache(maxsize=1)
def sample(key):
    return np.asarray(draw(key, shape=(MANY,))[0], np.float64)


# The distribution.


def moments(x):
    """The standardized errors of mean 0 and variance 1, and the excess kurtosis."""
    squares = x * x
    second, fourth, root = np.mean(squares), np.mean(squares * squares), np.sqrt(x.size)
    error = (second - 1) / np.sqrt(fourth - second**2)
    return np.mean(x) * root, error * root, fourth / second**2 - 3


@every_key
def test_fast_has_mean_0_variance_1_and_the_documented_kurtosis(key):
    """Error probability 3e-6; the kurtosis' standard error is below a normal sample's."""
    mean, variance, kurtosis = moments(sample(key))
    assert max(abs(mean), abs(variance)) < Z
    assert abs(kurtosis + 0.060) < 0.0005 + Z * np.sqrt(24 / MANY)  # the normal one is 0


def test_hashes_spread_over_all_words_have_the_documented_moments():
    """One word in 256, evenly spread: a sum, not a sample, so no error probability."""
    sums = np.zeros(3)
    for block in np.split(np.arange(2**24, dtype=np.uint32), 16):
        x = np.asarray(near_normal(block * np.uint32(0x9E3779B9)), np.float64)
        squares = x * x
        sums += np.sum(x), np.sum(squares), np.sum(squares * squares)
    mean, second, fourth = sums / 2**24
    assert abs(mean) < 1e-5
    assert abs(second - 1) < 2e-5
    assert abs(fourth / second**2 - 3 + 0.0602) < 3e-4


@pytest.mark.parametrize("stride", [1, 4096])
def test_all_hashes_in_a_leaf_differ(stride):
    """Of 2^20 random words 128 would have a twin; certain, so no error probability."""
    index = np.arange(2**20, dtype=np.uint32) * np.uint32(stride)
    hashes = np.asarray(hashed(index, *np.array([7, 9], np.uint32)))
    assert np.all(np.diff(np.sort(hashes)) != 0)


def distance_from_normal(x):
    """Kolmogorov's distance between an empirical distribution function and the normal one."""
    excess = scipy.special.ndtr(np.sort(x)) - np.arange(x.size) / x.size
    return max(np.max(excess), 1 / x.size - np.min(excess))  # below a step and at its top


# As documented, and Massart's bound on what an empirical one errs by more than 1 time in 10^6.
FARTHEST = 0.0015 + np.sqrt(np.log(2 / 1e-6) / (2 * MANY))


@every_key
def test_fast_is_within_the_documented_distance_of_the_normal_distribution(key):
    """Error probability 1e-6."""
    assert distance_from_normal(sample(key)) < FARTHEST


def popcount(rng, bits, dither):
    triangle = rng.random(MANY) - rng.random(MANY) if dither else 0.0
    ones = np.bitwise_count(rng.integers(0, 2**bits, MANY, np.uint32))
    return (ones - bits / 2 + triangle) / np.sqrt(bits / 4 + dither / 6)


IMPOSTORS = {
    "uniform": lambda rng: rng.uniform(-np.sqrt(3), np.sqrt(3), MANY),
    "16 bits with dither": lambda rng: popcount(rng, 16, dither=True),
    "16 bits without": lambda rng: popcount(rng, 16, dither=False),
    "32 bits without": lambda rng: popcount(rng, 32, dither=False),
}


@pytest.mark.parametrize("impostor", IMPOSTORS)
def test_that_distance_is_exceeded_by(impostor):
    assert distance_from_normal(IMPOSTORS[impostor](np.random.default_rng(0))) > FARTHEST


@pytest.mark.parametrize(("t", "ratio"), [(1, 1.01), (2, 0.98), (3, 0.84), (4, 0.51)])
@every_key  # the last to change: `sample` keeps one key
def test_fast_has_the_tails_of_its_equation_which_are_nearly_normal(t, ratio, key):
    """Error probability 1e-6 for the rate, 0 for the rest."""
    bits, spread = np.arange(33), np.sqrt(8 + 1 / 6)
    beyond = scipy.stats.triang.sf(t * spread, 0.5, bits - 17, 2)  # of P(xi > t) given the bits
    rate = 2 * scipy.stats.binom.pmf(bits, 32, 0.5) @ beyond
    assert min(ratio, 1) < rate / (2 * scipy.stats.norm.sf(t)) < max(ratio, 1)
    x = np.abs(sample(key))
    assert abs(np.mean(x > t) - rate) < Z * np.sqrt(rate / MANY)
    assert x.max() < 5.95


def test_gaussian_is_the_normal_quantile_of_its_words():
    """All tails, the middle and words between: relative to the exact quantile, in 40 digits."""
    edges = [0, 1, 2, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1]
    words = np.concatenate([edges, np.random.default_rng(0).integers(0, 2**32, 200_000)])
    words = np.concatenate([words, 2**31 + np.arange(2000), 2**31 - 1 - np.arange(2000)])
    words = words.astype(np.uint32)
    # P(xi <= x) from the nearer tail, which float64 holds to all its digits
    signed = words.view(np.int32).astype(np.float64)
    tail = (2.0**31 - np.abs(signed + 0.5)) / 2**32
    exact = -np.sign(signed + 0.5) * scipy.special.ndtri(tail)
    ours = np.asarray(jax.jit(normal._normal_quantile)(words), np.float64)
    np.testing.assert_allclose(ours, exact, rtol=5e-7)
    assert 6.3 < np.abs(ours).max() < 6.4


@every_key
def test_gaussian_noise_is_normal(key):
    """Error probability 1e-6 for the distance, 3e-6 for the moments."""
    x = np.asarray(draw(key, shape=(MANY,), sampler="gaussian")[0], np.float64)
    assert distance_from_normal(x) < np.sqrt(np.log(2 / 1e-6) / (2 * MANY))
    mean, variance, kurtosis = moments(x)
    assert max(abs(mean), abs(variance)) < Z
    assert abs(kurtosis) < Z * np.sqrt(24 / MANY)


def test_that_test_finds_the_fast_sampler_not_normal():
    assert distance_from_normal(sample(0)) > np.sqrt(np.log(2 / 1e-6) / (2 * MANY))


# Independence.

OCTILES = scipy.special.ndtri(np.arange(1, 8) / 8)
SIGNS = np.array([1, -1, -1, 1, 1, -1, -1, 1])  # one an octile, orthogonal to 1 and to the noise


def octile(x):
    return sum((x > edge for edge in OCTILES), np.zeros(x.shape, np.uint8))


def covariance(a, b):
    # Not `a @ b`: on a busy machine the threads of BLAS spend most of their time on waiting.
    return np.einsum("i,i->", a, b) / a.size - np.mean(a) * np.mean(b)


def correlation(a, b):
    return covariance(a, b) / np.sqrt(covariance(a, a) * covariance(b, b))


def p_values(a, b):
    """Of the correlation, the correlation of squares, and the counts in 8 x 8 octiles."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    counts = np.bincount(8 * octile(a) + octile(b), minlength=64).reshape(8, 8)
    correlations = [correlation(a, b), correlation(a * a, b * b)]
    linear, squares = 2 * scipy.stats.norm.sf(np.abs(correlations) * np.sqrt(a.size))
    octiles = scipy.stats.chi2_contingency(counts)[1]
    return {"linear": linear, "squares": squares, "octiles": octiles}


def keyed(first, second):
    index = np.arange(SOME, dtype=np.uint32)
    return near_normal(hashed(index, *np.array([first, second], np.uint32)))


def pair(kind, distance, key):
    """Two arrays of noise whose elements ought to have nothing to do with each other."""
    if kind in ("element", "row"):
        (x,) = draw(key, shape=(MORE,) if kind == "element" else (MORE // 1000, 1000))
        x = np.asarray(x)
        return x[:-distance], x[distance:]
    if kind == "leaf":
        x = draw(key, leaves=distance + 1)
        return x[0], x[distance]
    if kind == "leaf of another step":
        return draw(key, 0, leaves=2)[1], draw(key, distance, leaves=2)[0]
    if kind == "bit of a leaf's first word":
        return keyed(key, 5), keyed(key ^ 1 << distance, 5)
    if kind == "bit of its second":
        return keyed(5, key), keyed(5, key ^ 1 << distance)
    other = {"step": (key, distance), "key": (key + distance,), "key bit": (key ^ 1 << distance,)}
    return draw(key)[0], draw(*other[kind])[0]


DISTANCES = {
    "element": [1, 2, 3, 4, 32, 33, 128, 1024, 65536],
    "row": [1, 2, 3],
    "leaf": [1, 2],
    "step": [1, 2, 3, 1000],
    "leaf of another step": [1, 2],
    "key": [1, 2, 3],
    "key bit": range(31),
    "bit of a leaf's first word": [0, 10, 21, 31],
    "bit of its second": [0, 10, 21, 31],
}


@pytest.mark.parametrize("key", [0, 20151120] if SOAK else [0])
@pytest.mark.parametrize(("kind", "distance"), [(k, d) for k, ds in DISTANCES.items() for d in ds])
def test_fast_is_independent_of(kind, distance, key):
    """Error probability 3e-6."""
    assert min(p_values(*pair(kind, distance, key)).values()) > 1e-6


@pytest.mark.parametrize(
    ("found_by", "relate"),
    [
        ([], lambda a, b: b),
        (["linear", "octiles"], lambda a, b: b + 0.01 * a),
        (["squares", "octiles"], lambda a, b: b * (1 + 0.01 * a**2)),
        (["octiles"], lambda a, b: np.abs(b) * SIGNS[octile(a)]),
    ],
)
def test_dependence_is_found(found_by, relate):
    a, b = np.random.default_rng(0).normal(size=(2, SOME))
    assert [name for name, p in p_values(a, relate(a, b)).items() if p < 1e-6] == found_by


def test_every_key_step_and_leaf_has_noise_of_its_own():
    """Error probability 1e-12: four elements hold more than 70 bits."""

    def one(key_data, count):
        return unjitted_draw(jax.random.wrap_key_data(key_data), count, shape=(4,), leaves=8)

    over_steps = jax.vmap(one, in_axes=(None, 0))
    every = jax.jit(jax.vmap(over_steps, in_axes=(0, None)))
    keys = np.indices((8, 8), np.uint32).reshape(2, 64).T
    noise = every(keys, np.arange(64, dtype=np.int32))
    assert np.unique(np.reshape(noise, (-1, 4)), axis=0).shape == (64 * 64 * 8, 4)


# Reproducibility.

ONES = jax.device_put(np.ones((3, 5), np.float32))
LIKE = {"a": ONES, "b": [ONES, jax.device_put(np.float32(1.0))], "none": None}
ZEROS = jax.device_put(jax.tree.map(np.zeros_like, LIKE))
TYPED, RBG = jax.random.key(3), jax.random.key(3, impl="rbg")
RAW = jax.random.key_data(TYPED)


@every_sampler
def test_every_step_has_noise_of_its_own_and_compilation_changes_no_bit(sampler):
    tx = inject_noise(1.0, key=5, sampler=sampler)
    state = compiled_state = tx.init(LIKE)
    compiled_update, seen = jax.jit(tx.update), []
    for count in range(3):
        noise, state = tx.update(ZEROS, state)
        compiled, compiled_state = compiled_update(ZEROS, compiled_state)
        assert_same_bits((compiled, compiled_state), (noise, state))
        if sampler == "fast":
            assert_same_bits(noise["a"], draw(5, count, shape=(3, 5))[0])
        seen += [noise["a"], noise["b"][0]]
    assert len(np.unique(np.stack(seen), axis=0)) == 6


@pytest.mark.parametrize("shape", [(3, 4), (2, 300, 300), (1, 5, 1)])
def test_fast_follows_the_row_major_order_of_a_leaf(shape):
    flat = draw(1, shape=(math.prod(shape),))[0]
    assert_same_bits(draw(1, shape=shape)[0], np.reshape(flat, shape))


@every_sampler
def test_vmap_over_keys_equals_a_loop(sampler):
    def noise(key):
        tx = inject_noise(1.0, key=key, sampler=sampler)
        return tx.update(ZEROS, tx.init(LIKE))[0]

    keys = jax.random.split(jax.random.key(0), 4)
    loop = jax.tree.map(lambda *leaves: np.stack(leaves), *map(jax.jit(noise), keys))
    assert_same_bits(jax.jit(jax.vmap(noise))(keys), loop)


SHARDED = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from amac_jax import inject_noise

assert jax.device_count() == 8
mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto, AxisType.Auto))
updates = jnp.linspace(-1, 1, 8 * 6 * 10).reshape(8, 6, 10)
for scale in (1.0, 0.1):
    tx = inject_noise(scale, key=7)
    step = jax.jit(tx.update)
    alone, _ = step(updates, tx.init(updates))
    for spec in (P("x"), P(None, "y"), P("y", None, None), P(("x", "y")), P("x", "y")):
        spread = jax.device_put(updates, NamedSharding(mesh, spec))
        state = jax.device_put(tx.init(updates), NamedSharding(mesh, P()))
        compiled = step.lower(spread, state).compile()
        noisy, _ = compiled(spread, state)
        assert noisy.sharding.is_equivalent_to(spread.sharding, 3), spec
        np.testing.assert_array_equal(noisy, alone)
        assert not re.search("all-|collective-|reduce-scatter", compiled.as_text()), spec
"""


def test_eight_devices_make_the_noise_of_one_and_send_nothing(tmp_path):
    settings = {
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(amac_jax.__file__).parents[1]),
    }
    program = tmp_path / "sharded.py"
    program.write_text(SHARDED)
    ran = warm.run([sys.executable, program], os.environ | settings)
    assert ran.returncode == 0, ran.stderr


def through_flax(state, path):
    blank = jax.tree.map(np.zeros_like, state)
    return serialization.from_bytes(blank, serialization.to_bytes(state))


def through_orbax(state, path):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path / "state", jax.tree.map(jnp.zeros_like, state))


@pytest.mark.parametrize("restart", [through_flax, through_orbax])
@pytest.mark.parametrize("key", [3, TYPED, RBG, RAW])
def test_a_restart_continues_the_noise(restart, key, tmp_path):
    tx = inject_noise(1.0, key=key)
    update, state = jax.jit(tx.update), tx.init(LIKE)
    for _ in range(3):
        _, state = update(LIKE, state)
    restored = restart(state, tmp_path)
    assert_same_bits(update(ZEROS, restored), update(ZEROS, state))


def test_fast_is_what_was_recorded():
    """The second update from key 0: a run that is resumed by a later version goes on with it."""
    tx, zeros = inject_noise(1.0, key=0), {"a": np.zeros((2, 3), "f4"), "b": np.zeros(2, "f4")}
    _, state = tx.update(zeros, tx.init(zeros))
    noise, _ = tx.update(zeros, state)
    recorded = [[-0.7703725, -0.43720597, -1.2859885], [1.0291497, 0.1007183, -0.56743014]]
    np.testing.assert_allclose(noise["a"], recorded, rtol=1e-6)
    np.testing.assert_allclose(noise["b"], [0.0849829, 0.38911876], rtol=1e-6)


# Samplers, keys and scales.


@pytest.mark.parametrize(("key", "typed"), [(3, TYPED), (TYPED, TYPED), (RAW, TYPED), (RBG, RBG)])
def test_threefry_is_optax_random_like(key, typed):
    tx = inject_noise(1.0, key=key, sampler="threefry")
    state = tx.init(LIKE)
    for count in range(3):
        noise, state = tx.update(ZEROS, state)
        folded = jax.random.fold_in(typed, count)
        assert_same_bits(noise, optax.tree.random_like(folded, LIKE, jax.random.normal))


def test_a_callable_sampler_gets_key_count_and_updates_and_is_used_as_it_is():
    calls = []

    def sampler(key, count, like):
        calls.append((key, int(count)))
        return jax.tree.map(lambda x: 2 * x + jnp.float32(count), like)

    tx = inject_noise(0.5, key=3, sampler=sampler)
    state = tx.init(LIKE)
    for count in range(3):
        noisy, state = tx.update(LIKE, state)
        assert_same_bits(noisy, jax.tree.map(lambda x, c=count: x + 0.5 * (2 * x + c), LIKE))
    assert calls == [(TYPED, 0), (TYPED, 1), (TYPED, 2)]


@every_sampler
def test_relative_noise_is_in_units_of_each_leafs_root_mean_square(sampler):
    normals = 100 * np.random.default_rng(0).normal(size=(4, 3))
    updates = {"w": normals, "b": np.array([3.0, -4.0]), "s": np.array(-2.0)}

    @jax.jit
    def unit_and_relative(arrays):
        unit = inject_noise(1.0, key=2, sampler=sampler)
        tx = inject_noise(0.3, key=2, sampler=sampler, relative=True)
        noise, _ = unit.update(jax.tree.map(jnp.zeros_like, arrays), unit.init(arrays))
        return noise, tx.update(arrays, tx.init(arrays))[0]

    noise, noisy = unit_and_relative(jax.tree.map(np.float32, updates))
    for name, u in updates.items():
        expected = u + 0.3 * np.sqrt(np.mean(u**2)) * noise[name]
        np.testing.assert_allclose(noisy[name], expected, rtol=1e-5)


@pytest.mark.parametrize(("eta", "gamma"), [(0.01, 0.55), (1.0, 0.55), (0.3, 0.0)])
def test_scale_follows_the_annealing_of_neelakantan_et_al(eta, gamma):

    def sampler(key, count, like):
        return jnp.ones_like(like)

    tx = inject_noise(noise_anneal(eta, gamma), sampler=sampler)
    update, zero = jax.jit(tx.update), np.zeros(1, np.float32)
    state = tx.init(zero)
    for t in range(5):
        sigma, state = update(zero, state)
        np.testing.assert_allclose(sigma, np.sqrt(eta / (1 + t) ** gamma), rtol=1e-6)


@functools.cache
def noise_in_every_dtype(sampler):
    tx = inject_noise(0.3, key=4, sampler=sampler)

    @jit_for_speed
    def every(zeros):
        updates = {dtype: zeros.astype(dtype) for dtype in DTYPES}
        return {dtype: tx.update(zeros, tx.init(zeros))[0] for dtype, zeros in updates.items()}

    return jax.tree.map(np.asarray, every(np.zeros(2**18, np.float32)))


@every_sampler
@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_is_drawn_in_float32_and_rounded_once(dtype, sampler):
    """Error probability 2e-6; rounding to 8 bits moves the variance by less than 1e-5."""
    noise = noise_in_every_dtype(sampler)[dtype]
    assert_same_bits(noise, noise_in_every_dtype(sampler)["float32"].astype(dtype))
    mean, variance, _ = moments(np.asarray(noise, np.float64) / 0.3)
    assert max(abs(mean), abs(variance)) < Z


@every_sampler
def test_float64_updates_keep_their_precision(sampler):
    updates = np.linspace(1.0, 2.0, 101)

    @jax.jit
    def noise_and_noisy(updates):
        unit, tx = (inject_noise(scale, key=4, sampler=sampler) for scale in (1.0, 1e-9))
        noise, _ = unit.update(jnp.zeros_like(updates), unit.init(updates))
        return noise, tx.update(updates, tx.init(updates))[0]

    with jax.enable_x64(True):
        noise, noisy = map(np.asarray, noise_and_noisy(updates))
    assert noisy.dtype == np.float64
    np.testing.assert_allclose(noisy - updates, 1e-9 * noise, atol=1e-15)


STRANGE = np.float32([1.0, -0.0, 0.0, np.inf, -np.inf, np.nan, 1e-45, 3e38])
with np.errstate(over="ignore"):  # 3e38 is beyond float16
    STRANGE = jax.device_put({dtype: STRANGE.astype(dtype) for dtype in DTYPES})
NOTHING = {"number": 0.0, "array": jax.device_put(np.float32(0.0)), "schedule": lambda c: 0.0 * c}


@functools.cache
def with_noise_of_scale_0(scale, relative):
    """Without compilation and with it."""
    tx = inject_noise(NOTHING[scale], relative=relative)
    state = tx.init(STRANGE)
    return [update(STRANGE, state)[0] for update in (tx.update, jax.jit(tx.update))]


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("scale", NOTHING)
@pytest.mark.parametrize("dtype", STRANGE)
def test_scale_0_changes_no_bit(dtype, scale, relative):
    for noisy in with_noise_of_scale_0(scale, relative):
        assert_same_bits(noisy[dtype], STRANGE[dtype])


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf"), "a lot"])
def test_a_bad_scale_is_refused(scale):
    with pytest.raises(ValueError, match=rf"scale must be in \[0, inf\).*got {scale!r}"):
        inject_noise(scale)


def test_an_unknown_sampler_is_refused():
    with pytest.raises(ValueError, match=r"one of 'fast', 'gaussian', 'threefry'.*got 'slow'"):
        inject_noise(0.1, sampler="slow")


@pytest.mark.parametrize("key", [TYPED, RAW])
def test_state_holds_a_copy_of_the_key(key):
    tx, updates = inject_noise(0.1, key=key), jnp.ones(3)
    state = tx.init(updates)
    donated, _ = jax.jit(tx.update, donate_argnums=(0, 1))(updates, state)
    assert updates.is_deleted()
    assert state.inner.key.is_deleted()
    again, _ = jax.jit(tx.update)(jnp.ones(3), tx.init(jnp.ones(3)))
    assert_same_bits(donated, again)


@every_sampler
@pytest.mark.parametrize("relative", [False, True])
def test_empty_scalar_and_absent_leaves_pass(sampler, relative):
    odd = {
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.float32(1.0),
        "none": None,
        "mask": optax.MaskedNode(),
    }
    tx = inject_noise(0.1, sampler=sampler, relative=relative)
    noisy, state = jax.jit(tx.update)(odd, tx.init(odd))
    assert jax.tree.map(jnp.shape, noisy) == jax.tree.map(jnp.shape, odd)
    assert float(noisy["scalar"]) != 1
    assert np.isfinite(noisy["scalar"])
    assert tx.update({}, state)[0] == {}


@functools.cache
def compiled_with(sampler):
    """An update of many leaves of one shape, in place."""
    tx = inject_noise(0.1, sampler=sampler)
    updates = [np.zeros((300, 3), np.float32)] * (3 if sampler == "threefry" else 50)
    return jax.jit(tx.update, donate_argnums=0).lower(updates, tx.init(updates)).compile()


@every_sampler
def test_no_sampler_compiles_to_a_loop_or_to_arrays_beside_the_updates(sampler):
    if sampler == "threefry" and not (UNROLLS_THREEFRY and jax.default_backend() == "cpu"):
        pytest.skip("JAX's own threefry, a loop over arrays on CPU")
    program = compiled_with(sampler)
    assert not re.search(r"\bwhile\(", program.as_text())
    memory = program.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 300 * 3 * 4


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads the text of a CPU's program")
@pytest.mark.parametrize("sampler", ["fast", "gaussian"])
def test_leaves_of_one_shape_are_compiled_but_once(sampler):
    """XLA compiles identical kernels once; what makes one leaf's its own has to be an operand."""
    text = compiled_with(sampler).as_text()
    kernels = re.findall(r"%fused_computation\S* \(.*?-> f32\[300,3\] {\n(.*?)\n}", text, re.DOTALL)
    assert len(kernels) == 50
    assert len({anonymous(kernel) for kernel in kernels}) <= 4  # their operands' order may differ


def anonymous(kernel: str) -> str:
    """The text of a kernel with its values numbered as they come."""
    kernel, numbers = re.sub(r", metadata={.*?}", "", kernel), {}
    return re.sub(r"%[\w.-]+", lambda name: f"%{numbers.setdefault(name[0], len(numbers))}", kernel)


def test_inject_hyperparams_equals_plain():
    tx, plain = optax.inject_hyperparams(inject_noise)(scale=0.1, key=3), inject_noise(0.1, key=3)
    state, plain_state = tx.init(LIKE), plain.init(LIKE)
    for _ in range(3):
        noisy, state = tx.update(LIKE, state)
        plain_noisy, plain_state = plain.update(LIKE, plain_state)
        assert_same_bits(noisy, plain_noisy)
