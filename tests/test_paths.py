"""`by_path`: masks, rates and labels by patterns of paths; frozen layers without state."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import amac_jax
from amac_jax import by_path
from tests.helpers import apply, assert_same_bits, normals, train

PARAMS = {
    "embed": {"embedding": jnp.ones((5, 2))},
    "body": [{"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)} for _ in range(2)],
    "head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
}
FROZEN = {"embed": "freeze", "body/0": "freeze"}


def test_the_first_pattern_that_fits_decides():
    found = by_path({"*/bias": 0.0, "body/1": 0.5, "body": 0.1, "emb*": 2.0}, default=1.0)(PARAMS)
    assert found == {
        "embed": {"embedding": 2.0},
        "body": [{"kernel": 0.1, "bias": 0.0}, {"kernel": 0.5, "bias": 0.0}],
        "head": {"kernel": 1.0, "bias": 0.0},
    }


def test_a_default_may_be_a_function_of_path_and_leaf():
    mask = by_path({"head": False}, default=amac_jax.is_kernel)
    assert mask(PARAMS) == {
        "embed": {"embedding": False},
        "body": [{"kernel": True, "bias": False}] * 2,
        "head": {"kernel": False, "bias": False},
    }


def test_as_a_decay_mask_only_those_leaves_decay():
    mask = by_path({"head": False}, default=amac_jax.is_kernel)
    still = jax.tree.map(jnp.zeros_like, PARAMS)
    for tx in (
        amac_jax.sgd(1.0, weight_decay=0.5, decay_mask=mask),
        optax.chain(optax.add_decayed_weights(0.5, mask), optax.scale(-1.0)),
    ):
        updates, _ = apply(tx, still, PARAMS)
        expected = jax.tree.map(lambda decays, p: -0.5 * decays * p, mask(PARAMS), PARAMS)
        for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)


def test_as_layer_multipliers_it_is_the_mapping_schedules_included():
    factors = {"embed": 0.0, "body/0": lambda count: 0.25 * count, "body": 0.5, "*": 2.0}
    gradients = [*normals(0, PARAMS, 3)]
    plain = amac_jax.sgd(0.1, layer_multipliers=factors)
    ours = amac_jax.sgd(0.1, layer_multipliers=by_path(factors))
    runs = [[params for params, _ in train(tx, PARAMS, gradients)] for tx in (plain, ours)]
    assert_same_bits(*runs)
    assert_same_bits(runs[1][-1]["embed"], PARAMS["embed"])
    assert not np.array_equal(runs[1][-1]["body"][0]["kernel"], PARAMS["body"][0]["kernel"])


def test_as_labels_and_masks_in_optax():
    labels = by_path({"*bias": "small"}, default="large")
    parts = {"small": optax.sgd(0.1), "large": optax.sgd(1.0)}
    masked = optax.masked(optax.scale(2.0), by_path({"head": True}, default=False))
    for tx, factor in (
        (optax.partition(parts, labels), lambda name: -0.1 if name.endswith("bias") else -1.0),
        (masked, lambda name: 2.0 if name.startswith("head") else 1.0),
    ):
        updates, _ = apply(tx, PARAMS, PARAMS)
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            np.testing.assert_allclose(leaf, factor(name), rtol=1e-6)


# --- Frozen layers --------------------------------------------------------------------------------


def frozen(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    parts = {"train": tx, "freeze": optax.set_to_zero()}
    return optax.partition(parts, by_path(FROZEN, default="train"))


def is_frozen(path: Any) -> bool:
    return jax.tree_util.keystr(path, simple=True, separator="/").startswith(tuple(FROZEN))


@pytest.mark.parametrize("core", ["muon", "adam"])
def test_frozen_layers_have_no_state_and_equal_their_averages(core):
    [params] = normals(0, PARAMS)
    gradients = [*normals(1, PARAMS, 8)]
    tx = frozen(amac_jax.amac("auto", 8, core=core, clip_norm=1.0, average_period=1))
    *_, (after, state) = train(tx, params, gradients)
    assert not [
        path
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if leaf.shape and re.search("embed|body'?]?/?\\[0", jax.tree_util.keystr(path))
    ]
    average = amac_jax.averaged_params(state, after)
    for path, before in jax.tree_util.tree_leaves_with_path(params):
        now, mean = (
            dict(jax.tree_util.tree_leaves_with_path(tree))[path] for tree in (after, average)
        )
        assert np.array_equal(now, before) == is_frozen(path)
        assert np.array_equal(mean, before) == is_frozen(path)
        assert np.array_equal(mean, now) == is_frozen(path)


def test_zeroing_the_updates_behind_the_optimizer_averages_steps_that_are_not_taken():
    """What the docstring warns of."""
    [params] = normals(0, PARAMS)
    mask = by_path(dict.fromkeys(FROZEN, True), default=False)
    tx = optax.chain(
        amac_jax.amac("auto", 8, average_period=1), optax.masked(optax.set_to_zero(), mask)
    )
    *_, (after, state) = train(tx, params, [*normals(1, PARAMS, 8)])
    assert_same_bits(after["embed"], params["embed"])
    average = amac_jax.averaged_params(state, after)
    assert not np.allclose(average["embed"]["embedding"], params["embed"]["embedding"])


def test_frozen_layers_do_not_count_in_the_norm_that_clips():
    [gradient] = normals(0, PARAMS)
    trained = [{**gradient, "embed": None, "body": [None, gradient["body"][1]]}]
    norm = float(optax.tree.norm(trained))
    updates, _ = apply(frozen(amac_jax.sgd(1.0, clip_norm=1.0)), gradient, PARAMS)
    np.testing.assert_allclose(
        updates["head"]["kernel"], -gradient["head"]["kernel"] / norm, rtol=1e-5
    )


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(2, name="head")(nn.relu(nn.Dense(4, name="body")(x)))


class NNX(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.body, self.head = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.body(x)))


def only_the_head() -> optax.GradientTransformationExtraArgs:
    parts = {"train": amac_jax.amac("auto", 4, average_period=1), "freeze": optax.set_to_zero()}
    return optax.partition(parts, by_path({"body": "freeze"}, default="train"))


def test_a_linen_train_state_with_frozen_layers(promoting):
    x, model = jnp.ones((5, 3)), Linen()
    params = model.init(jax.random.key(0), x)["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=only_the_head())
    for _ in range(4):
        gradients = jax.grad(lambda p: jnp.mean((model.apply({"params": p}, x) - 1.0) ** 2))(
            state.params
        )
        state = state.apply_gradients(grads=gradients)
    average = amac_jax.averaged_params(state, state.params)
    assert_same_bits((average["body"], state.params["body"]), (params["body"], params["body"]))
    assert not np.array_equal(average["head"]["kernel"], params["head"]["kernel"])


def test_an_nnx_optimizer_with_frozen_layers(promoting):
    model, x = NNX(), jnp.ones((5, 3))
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, only_the_head(), wrt=nnx.Param)
    for _ in range(4):
        gradients = nnx.grad(lambda model: jnp.mean((model(x) - 1.0) ** 2))(model)
        optimizer.update(model, gradients)
    nnx.update(model, amac_jax.averaged_params(optimizer, nnx.state(model, nnx.Param)))
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert_same_bits(after["body"], before["body"])
    assert not np.array_equal(after["head"]["kernel"], before["head"]["kernel"])


# --- Refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["head"], "patterns must be a mapping pattern -> value, got ['head']"),
        ({"": 1.0}, "patterns must have non-empty strings for patterns"),
        ({0: 1.0}, "patterns must have non-empty strings for patterns"),
        ({"head": None}, "patterns['head'] must be a leaf of a tree, got None"),
    ],
)
def test_patterns_that_are_refused(patterns, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        by_path(patterns, default=1.0)


def test_a_schedule_is_not_a_default():
    with pytest.raises(ValueError, match=r'of \(key path, leaf\), got .*is the pattern "\*"'):
        by_path({"head": 0.1}, default=optax.constant_schedule(1.0))


def test_a_pattern_that_fits_no_leaf_is_refused_unless_it_is_optional():
    with pytest.raises(ValueError, match=r"patterns .* 'he' fits none; there are"):
        by_path({"he": 0.5}, default=1.0)(PARAMS)
    found = by_path({"he": 0.5}, default=1.0, optional=True)(PARAMS)
    assert found == jax.tree.map(lambda _: 1.0, PARAMS)


def test_a_pattern_behind_one_that_fits_the_same_is_refused_unless_it_is_optional():
    shadowed = {"head": 0.5, "head/kernel": 0.1}
    with pytest.raises(ValueError, match="must have 'head/kernel' before 'head', which fits all"):
        by_path(shadowed, default=1.0)(PARAMS)
    assert by_path(shadowed, default=1.0, optional=True)(PARAMS)["head"]["kernel"] == 0.5
    narrow_first = {"embed/embedding": 0.5, "embed": 0.4, "body": 0.2, "head": 0.1, "*": 0.3}
    assert by_path(narrow_first)(PARAMS)["embed"] == {"embedding": 0.5}  # nothing is left for two
    reversed_ = dict(reversed(shadowed.items()))
    assert by_path(reversed_, default=1.0)(PARAMS)["head"]["kernel"] == 0.1


def test_without_a_default_every_leaf_must_fit():
    with pytest.raises(ValueError, match="no default, got none for 'embed/embedding'"):
        by_path({"body": 0.5, "head": 1.0})(PARAMS)
    assert by_path({"body": 0.5, "*": 1.0})(PARAMS)["embed"] == {"embedding": 1.0}


def test_trees_without_leaves_and_bare_arrays():
    assert by_path({"head": 0.5}, default=1.0)({}) == {}
    assert by_path({"*": 0.5})(jnp.ones(2)) == 0.5
