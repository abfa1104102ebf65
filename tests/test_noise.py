"""`inject_noise`: the distribution of its fast sampler, its reproducibility, and its arithmetic.

The fast sampler is drawn from by the public route: noise of scale 1 on zeros. A statistical test
is a function of fixed keys; its error probability is that of failing a perfect generator.
"""

import functools
import math
import os
import re
import subprocess
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
from amac_jax._core.random import counter, normal, unrolls_threefry
from tests.helpers import SOAK, assert_same_bits

Z = 4.9  # a normal variable is farther from its mean, in standard deviations, 1 time in 10^6
MANY, MORE, SOME = 2**23, 2**22, 2**20
every_key = pytest.mark.parametrize("key", [0, 1, 2**31 - 1])
every_sampler = pytest.mark.parametrize("sampler", ["fast", "gaussian", "threefry"])


@functools.partial(jax.jit, static_argnames=("shape", "leaves"))
def draw(key, count=0, *, shape=(SOME,), leaves=1):
    """The noise that update number `count` adds to leaves of one shape."""
    tx = inject_noise(1.0, key=key)
    zeros = [jnp.zeros(shape)] * leaves
    return tx.update(zeros, tx.init(zeros)._replace(count=jnp.asarray(count, jnp.int32)))[0]


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
    hashes = jnp.arange(2**24, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    x = np.asarray(normal._near_normal(hashes), np.float64)
    assert abs(np.mean(x)) < 1e-5
    assert abs(np.mean(x * x) - 1) < 2e-5
    assert abs(moments(x)[2] + 0.0602) < 3e-4


@pytest.mark.parametrize("stride", [1, 4096])
def test_all_hashes_in_a_leaf_differ(stride):
    """Of 2^20 random words 128 would have a twin; certain, so no error probability."""
    index = jnp.arange(2**20, dtype=jnp.uint32) * jnp.uint32(stride)
    hashes = counter._hash(index, *jnp.uint32([7, 9]))
    assert np.unique(hashes).size == hashes.size


def distance_from_normal(x):
    """Kolmogorov's distance between an empirical distribution function and the normal one."""
    exact, rank = scipy.special.ndtr(np.sort(x)), np.arange(x.size + 1) / x.size
    return max(np.max(rank[1:] - exact), np.max(exact - rank[:-1]))


# As documented, and Massart's bound on what an empirical one errs by more than 1 time in 10^6.
FARTHEST = 0.0015 + np.sqrt(np.log(2 / 1e-6) / (2 * MANY))


@every_key
def test_fast_is_within_the_documented_distance_of_the_normal_distribution(key):
    """Error probability 1e-6."""
    assert distance_from_normal(sample(key)) < FARTHEST


def popcount(rng, bits, dither):
    triangle = rng.triangular(-1, 0, 1, MANY) if dither else 0.0
    return (rng.binomial(bits, 0.5, MANY) - bits / 2 + triangle) / np.sqrt(bits / 4 + dither / 6)


IMPOSTORS = {
    "uniform": lambda rng: rng.uniform(-np.sqrt(3), np.sqrt(3), MANY),
    "16 bits with dither": lambda rng: popcount(rng, 16, dither=True),
    "16 bits without": lambda rng: popcount(rng, 16, dither=False),
    "32 bits without": lambda rng: popcount(rng, 32, dither=False),
}


@pytest.mark.parametrize("impostor", IMPOSTORS)
def test_that_distance_is_exceeded_by(impostor):
    assert distance_from_normal(IMPOSTORS[impostor](np.random.default_rng(0))) > FARTHEST


@every_key
@pytest.mark.parametrize(("t", "ratio"), [(1, 1.01), (2, 0.98), (3, 0.84), (4, 0.51)])
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
    ours = np.asarray(normal._normal_quantile(jnp.asarray(words)), np.float64)
    np.testing.assert_allclose(ours, exact, rtol=5e-7)
    assert 6.3 < np.abs(ours).max() < 6.4


@every_key
def test_gaussian_noise_is_normal(key):
    """Error probability 1e-6 for the distance, 3e-6 for the moments."""
    tx = inject_noise(1.0, key=key, sampler="gaussian")
    zeros = jnp.zeros(MANY)
    x = np.asarray(jax.jit(tx.update)(zeros, tx.init(zeros))[0], np.float64)
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
    return np.sum([x > edge for edge in OCTILES], axis=0, dtype=np.uint8)


def p_values(a, b):
    """Of the correlation, the correlation of squares, and the counts in 8 x 8 octiles."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    counts = np.bincount(8 * octile(a) + octile(b), minlength=64).reshape(8, 8)
    correlations = [np.corrcoef(a, b)[0, 1], np.corrcoef(a * a, b * b)[0, 1]]
    linear, squares = 2 * scipy.stats.norm.sf(np.abs(correlations) * np.sqrt(a.size))
    octiles = scipy.stats.chi2_contingency(counts)[1]
    return {"linear": linear, "squares": squares, "octiles": octiles}


def keyed(first, second):
    index = jnp.arange(SOME, dtype=jnp.uint32)
    return normal._near_normal(counter._hash(index, *jnp.uint32([first, second])))


def pair(kind, distance, key):
    """Two arrays of noise whose elements ought to have nothing to do with each other."""
    if kind in ("element", "row"):
        (x,) = draw(key, shape=(MORE,) if kind == "element" else (MORE // 1000, 1000))
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
    keys = jax.random.wrap_key_data(jnp.indices((8, 8), jnp.uint32).reshape(2, 64).T)
    over_steps = jax.vmap(lambda k, c: draw(k, c, shape=(4,), leaves=8), in_axes=(None, 0))
    noise = jax.vmap(over_steps, in_axes=(0, None))(keys, jnp.arange(64))
    assert np.unique(np.reshape(noise, (-1, 4)), axis=0).shape == (64 * 64 * 8, 4)


# Reproducibility.

LIKE = {"a": jnp.ones((3, 5)), "b": [jnp.ones((3, 5)), jnp.ones(())], "none": None}
ZEROS = jax.tree.map(jnp.zeros_like, LIKE)
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
    assert_same_bits(draw(1, shape=shape)[0], flat.reshape(shape))


@every_sampler
def test_vmap_over_keys_equals_a_loop(sampler):
    def noise(key):
        tx = inject_noise(1.0, key=key, sampler=sampler)
        return tx.update(ZEROS, tx.init(LIKE))[0]

    keys = jax.random.split(jax.random.key(0), 4)
    loop = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(noise, keys))
    assert_same_bits(jax.vmap(noise)(keys), loop)


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
        noisy, _ = step(spread, state)
        assert noisy.sharding.is_equivalent_to(spread.sharding, 3), spec
        np.testing.assert_array_equal(noisy, alone)
        program = step.lower(spread, state).compile().as_text()
        assert not re.search("all-|collective-|reduce-scatter", program), spec
"""


def test_eight_devices_make_the_noise_of_one_and_send_nothing():
    settings = {
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(amac_jax.__file__).parents[1]),
    }
    command = [sys.executable, "-c", SHARDED]
    ran = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def through_flax(state, path):
    blank = jax.tree.map(jnp.zeros_like, state)
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
    state = tx.init(LIKE)
    for _ in range(3):
        _, state = tx.update(LIKE, state)
    restored = restart(state, tmp_path)
    assert_same_bits(tx.update(ZEROS, restored), tx.update(ZEROS, state))


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
    arrays = jax.tree.map(jnp.float32, updates)
    unit = inject_noise(1.0, key=2, sampler=sampler)
    noise, _ = unit.update(jax.tree.map(jnp.zeros_like, arrays), unit.init(arrays))
    tx = inject_noise(0.3, key=2, sampler=sampler, relative=True)
    noisy, _ = tx.update(arrays, tx.init(arrays))
    for name, u in updates.items():
        expected = u + 0.3 * np.sqrt(np.mean(u**2)) * noise[name]
        np.testing.assert_allclose(noisy[name], expected, rtol=1e-5)


@pytest.mark.parametrize(("eta", "gamma"), [(0.01, 0.55), (1.0, 0.55), (0.3, 0.0)])
def test_scale_follows_the_annealing_of_neelakantan_et_al(eta, gamma):

    def sampler(key, count, like):
        return jnp.ones_like(like)

    tx = inject_noise(noise_anneal(eta, gamma), sampler=sampler)
    state = tx.init(jnp.zeros(1))
    for t in range(5):
        sigma, state = tx.update(jnp.zeros(1), state)
        np.testing.assert_allclose(sigma, np.sqrt(eta / (1 + t) ** gamma), rtol=1e-6)


@every_sampler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_noise_is_drawn_in_float32_and_rounded_once(dtype, sampler):
    """Error probability 2e-6; rounding to 8 bits moves the variance by less than 1e-5."""
    tx = inject_noise(0.3, key=4, sampler=sampler)
    zeros = jnp.zeros(2**18)
    noise, _ = tx.update(zeros.astype(dtype), tx.init(zeros))
    assert_same_bits(noise, tx.update(zeros, tx.init(zeros))[0].astype(dtype))
    mean, variance, _ = moments(np.asarray(noise, np.float64) / 0.3)
    assert max(abs(mean), abs(variance)) < Z


@every_sampler
def test_float64_updates_keep_their_precision(sampler):
    with jax.enable_x64(True):
        updates = jnp.linspace(1.0, 2.0, 101, dtype=jnp.float64)
        unit, tx = (inject_noise(scale, key=4, sampler=sampler) for scale in (1.0, 1e-9))
        noise, _ = unit.update(jnp.zeros_like(updates), unit.init(updates))
        noisy, _ = tx.update(updates, tx.init(updates))
        assert noisy.dtype == np.float64
        np.testing.assert_allclose(noisy - updates, 1e-9 * noise, atol=1e-15)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("scale", [0.0, jnp.zeros(()), lambda count: 0.0 * count])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_scale_0_changes_no_bit(dtype, scale, relative):
    updates = jnp.array([1.0, -0.0, 0.0, jnp.inf, -jnp.inf, jnp.nan, 1e-45, 3e38]).astype(dtype)
    tx = inject_noise(scale, relative=relative)
    for update in (tx.update, jax.jit(tx.update)):
        assert_same_bits(update(updates, tx.init(updates))[0], updates)


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
        "empty": jnp.zeros((0, 3)),
        "scalar": jnp.ones(()),
        "none": None,
        "mask": optax.MaskedNode(),
    }
    tx = inject_noise(0.1, sampler=sampler, relative=relative)
    noisy, state = tx.update(odd, tx.init(odd))
    assert jax.tree.map(jnp.shape, noisy) == jax.tree.map(jnp.shape, odd)
    assert noisy["scalar"] != 1
    assert jnp.isfinite(noisy["scalar"])
    assert tx.update({}, state)[0] == {}


@every_sampler
def test_no_sampler_compiles_to_a_loop_or_to_arrays_beside_the_updates(sampler):
    if sampler == "threefry" and not unrolls_threefry():
        pytest.skip("JAX's own threefry, a loop over arrays on CPU")
    tx = inject_noise(0.1, sampler=sampler)
    updates = [jnp.zeros((300, 3)) for _ in range(3 if sampler == "threefry" else 50)]
    program = jax.jit(tx.update, donate_argnums=0).lower(updates, tx.init(updates)).compile()
    assert not re.search(r"\bwhile\(", program.as_text())
    memory = program.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 300 * 3 * 4


@pytest.mark.parametrize("sampler", ["fast", "gaussian"])
def test_leaves_of_one_shape_are_compiled_but_once(sampler):
    """XLA compiles identical kernels once; what makes one leaf's its own has to be an operand."""
    tx = inject_noise(0.1, sampler=sampler)
    updates = [jnp.zeros((300, 3)) for _ in range(20)]
    text = jax.jit(tx.update).lower(updates, tx.init(updates)).compile().as_text()
    kernels = re.findall(r"%fused_computation\S* \(.*?-> f32\[300,3\] {\n(.*?)\n}", text, re.DOTALL)
    assert len(kernels) == 20
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
