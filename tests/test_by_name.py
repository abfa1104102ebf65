"""Optimizers by name, and AMaC's direction for trainers with a rate and a decay of their own."""

import json
import re
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import amac_jax
from amac_jax import OPTIMIZERS, by_name, scale_by_amac
from amac_jax.kernels import kernel_mask, stacked
from tests import table
from tests.helpers import assert_close, assert_same_bits, normals, train

LIKE = {
    "dense": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)},
    "embed": {"embedding": jnp.zeros((5, 2))},
}
NEEDED: dict[str, Any] = {
    "amac": {"learning_rate": "auto", "total_steps": 20},
    "amac_reference": {},
}


def arguments(name: str) -> dict[str, Any]:
    return NEEDED.get(name, {"learning_rate": 0.1})


def built(name: str) -> optax.GradientTransformationExtraArgs:
    """The optimizer, given what it asks for with every update: the `value_fn` of second order."""
    if name in ("sophia", "newton"):
        return table.supplied(by_name, value_fn=table.bowl)(name, **arguments(name))
    return by_name(name, **arguments(name))


# --- The table ------------------------------------------------------------------------------------


def test_the_table_has_the_names_of_the_tests_table_and_of_the_package():
    classics = set(table.OPTIMIZERS)
    assert OPTIMIZERS.keys() == classics | {"amac", "amac_reference"}
    for name, factory in OPTIMIZERS.items():
        assert getattr(amac_jax, name) is factory  # as Tunix finds an optimizer
        assert factory.__name__ == name
    with pytest.raises(TypeError):
        OPTIMIZERS["mine"] = amac_jax.sgd  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_factory_with_these_keywords(name):
    config = json.loads(json.dumps({"name": name, **arguments(name)}))
    tx = by_name(**config)
    if name != "amac_reference":  # a chain of Optax's, which does not say what it is
        assert repr(tx) == repr(OPTIMIZERS[name](**arguments(name)))
    assert jax.tree.structure(tx.init(LIKE)) == jax.tree.structure(
        OPTIMIZERS[name](**arguments(name)).init(LIKE)
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_trainers_pass_beside_gradients_is_ignored(name, promoting):
    tx = built(name)
    [params] = normals(0, LIKE)
    state = jax.eval_shape(tx.init, params)
    extra = {"loss": jnp.ones([]), "grad_norm": jnp.ones([]), "value": jnp.ones([])}

    def program(**extra):
        update = lambda *args: tx.update(*args, **extra)  # noqa: E731
        return str(jax.make_jaxpr(update)(params, state, params))

    assert program(**extra) == program()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("adamm", "got 'adamm'; did you mean 'adam'?"),
        ("AdamW", "got 'AdamW'; did you mean 'adamw'?"),
        ("xyz", "got 'xyz'"),
        ("recipes", "got 'recipes'"),
        (None, "got None"),
        (["adam"], "got ['adam']; did you mean 'adam'?"),
    ],
)
def test_a_wrong_name_lists_what_there_is(name, hint):
    with pytest.raises(ValueError, match=r"^name must be one of 'amac', ") as error:
        by_name(name, learning_rate=0.1)
    message = str(error.value)
    assert "\n" not in message
    assert all(repr(known) in message for known in OPTIMIZERS)
    assert message.endswith(hint)


@pytest.mark.parametrize(
    ("name", "keyword", "hint"),
    [
        ("adamw", "clip_nrom", "did you mean 'clip_norm'?"),
        ("adamw", "lr", "it is learning_rate here"),
        ("amac_reference", "warmup", "did you mean 'warmup_steps'?"),
        ("sgd", "xyz", "its help lists the keywords"),
    ],
)
def test_a_wrong_keyword_is_named_with_what_there_is(name, keyword, hint):
    with pytest.raises(TypeError) as error:
        by_name(name, **{keyword: 1.0})
    message = str(error.value)
    assert message.startswith(f"{name}() does not take {keyword!r}")
    assert hint in message
    assert "\n" not in message
    assert re.search(r"\(it takes l\w+, .*(record_metrics)\)$", message)


def test_what_the_factory_refuses_is_refused():
    with pytest.raises(ValueError, match=r"clip_norm must be in \(0, inf\], got -1.0"):
        by_name("adamw", learning_rate=0.1, clip_norm=-1.0)
    with pytest.raises(TypeError, match="missing a required argument: 'learning_rate'"):
        by_name("adamw")


# --- The contract of a trainer --------------------------------------------------------------------


def placed(tx: Any, abstract: Any, params: Any, mesh: Any) -> Any:
    """Shardings of a state: of its parameters for what has their shape, else replicated."""

    def beside(leaf: Any, param: jax.Array) -> Any:
        is_hidden = isinstance(leaf, optax.MaskedNode)  # Muon's state holds kernels alone
        return (
            leaf
            if is_hidden
            else NamedSharding(mesh, PartitionSpec("data", *[None] * (param.ndim - 1)))
        )

    return optax.tree.map_params(
        tx,
        beside,
        abstract,
        params,
        transform_non_params=lambda _: NamedSharding(mesh, PartitionSpec()),
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )


def test_states_shard_as_parameters_and_are_restored_in_the_abstract(tmp_path):
    """All names in one checkpoint; on eight devices: test_sharding.py and test_resume.py."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    params, *gradients = normals(0, LIKE, 4)
    txs = {name: built(name) for name in OPTIMIZERS}
    steps = {name: jax.jit(optax.with_extra_args_support(tx).update) for name, tx in txs.items()}

    def advanced(name: str, state: Any, gradients: Any) -> Any:
        for gradient in gradients:
            _, state = steps[name](gradient, state, params)
        return state

    halves = {name: advanced(name, tx.init(params), gradients[:2]) for name, tx in txs.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", halves)
    written = flax.serialization.to_bytes(halves)

    asked = {}
    for name, tx in txs.items():
        abstract = jax.eval_shape(tx.init, params)
        shardings = placed(tx, abstract, params, mesh)
        assert jax.tree.structure(shardings) == jax.tree.structure(abstract)
        asked[name] = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            abstract,
            shardings,
        )
    spread = [leaf.sharding.spec for leaf in jax.tree.leaves(asked)]
    assert sum(bool(spec) for spec in spread) > len(OPTIMIZERS)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "states", asked)
    assert_same_bits(restored, halves)
    assert_same_bits(flax.serialization.from_bytes(asked, written), halves)
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(asked), strict=True):
        assert leaf.sharding == wanted.sharding
    for name in OPTIMIZERS:
        ends = [advanced(name, one[name], gradients[2:]) for one in (halves, restored)]
        assert_same_bits(*ends)


# --- The direction --------------------------------------------------------------------------------

STEPS = 12
DIRECTIONS = {
    "muon": {},
    "adam": {"core": "adam"},
    "adam alone": {"core": "adam", "centralize": None, "clip_value": None, "b1": 0.5, "eps": 1e-3},
    "all": {"core": "adam", "clip_norm": 0.5, "noise": 0.1, "clip_value": 0.3, "key": 3},
    "muon, all": {"clip_norm": 0.5, "centralize": 0.5, "noise": 0.1, "clip_value": 0.3, "b2": 0.9},
    "own": {"core": optax.scale_by_rms(), "centralize": True},
}


def schedule(count: Any) -> jax.Array:
    return 0.01 + 0.002 * jnp.asarray(count, jnp.float32)


def runs(*txs: optax.GradientTransformation) -> list[list[tuple[Any, Any]]]:
    params, *gradients = normals(0, LIKE, STEPS + 1)
    return [[*train(tx, params, gradients)] for tx in txs]


def around(name: str) -> dict[str, Any]:
    """The keywords of `amac` that leave out all that stands behind the rate."""
    return {**dict.fromkeys(("weight_decay", "sync_period", "average_start")), **DIRECTIONS[name]}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_with_a_rate_it_is_amac(name, promoting):
    tx = optax.chain(
        scale_by_amac(STEPS, **DIRECTIONS[name]), optax.scale_by_learning_rate(schedule)
    )
    whole = amac_jax.amac(schedule, STEPS, **around(name))
    for (ours, _), (theirs, _) in zip(*runs(tx, whole), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_with_decay_and_rate_of_optax_it_is_amac_that_decays(name, promoting):
    tx = optax.chain(
        scale_by_amac(STEPS, **DIRECTIONS[name]),
        optax.add_decayed_weights(0.3, kernel_mask),
        optax.scale_by_learning_rate(schedule),
    )
    settings = {**around(name), "weight_decay": 0.3, "decay_floor": None}
    decaying, plain = (amac_jax.amac(schedule, STEPS, **one) for one in (settings, around(name)))
    by_hand, ours, without = (run[-1][0] for run in runs(tx, decaying, plain))
    assert_close(by_hand, ours)
    with pytest.raises(AssertionError):
        assert_close(ours, without)


def test_what_stands_behind_the_rate_is_chained_behind_it(promoting):
    """The chain of the docstring: lookahead and averaging see updates, not directions."""
    tx = optax.chain(
        scale_by_amac(STEPS, core="adam"),
        optax.add_decayed_weights(0.1, kernel_mask),
        optax.scale_by_learning_rate(schedule),
        amac_jax.lookahead(5, 0.8),
        amac_jax.average_weights(0.75 * STEPS, 5),
    )
    settings: dict[str, Any] = {"weight_decay": 0.1, "decay_floor": None}
    whole = amac_jax.amac(schedule, STEPS, core="adam", **settings)
    ends = [run[-1] for run in runs(tx, whole)]
    assert_close(*(params for params, _ in ends))
    assert_close(*(amac_jax.averaged_params(state, params) for params, state in ends))


def test_momentum_and_decay_behind_the_rate(promoting):
    tx = optax.chain(
        scale_by_amac(STEPS),
        optax.scale_by_learning_rate(schedule),
        amac_jax.heavy_ball(0.9, dampening=0.9),
        amac_jax.decay_weights(lambda count: 0.3 * schedule(count)),
    )
    settings: dict[str, Any] = {**around("muon"), "weight_decay": 0.3, "decay_floor": None}
    whole = amac_jax.amac(schedule, STEPS, momentum=0.9, **settings)
    for (ours, _), (theirs, _) in zip(*runs(tx, whole), strict=True):
        assert_close(ours, theirs)


def test_the_multiplier_of_all_but_kernels_is_inside():
    [gradient] = normals(0, LIKE)
    updates, _ = scale_by_amac(1000).update(gradient, scale_by_amac(1000).init(LIKE), LIKE)
    np.testing.assert_allclose(
        updates["dense"]["bias"], np.sign(gradient["dense"]["bias"]) / 1.5, rtol=1e-5
    )
    mean_square = np.mean(np.square(updates["dense"]["kernel"]))
    assert 0.15 < np.sqrt(mean_square) < 0.25  # 0.2 sqrt(4) times a matrix of 4 x 3 with rank 3


@pytest.mark.parametrize("build", ["scale_by_amac", "amac"])
def test_a_rule_for_kernels_is_a_rule_for_muon_too(build):
    """Stacked layers are matrices of their own, as in `muon`."""
    params = {"blocks": {"kernel": jnp.zeros((3, 4, 4))}}
    [gradient] = normals(0, params)
    rule = stacked("blocks")

    def direction(gradient: Any, rule: Any) -> Any:
        if build == "amac":
            tx = amac_jax.amac(optax.constant_schedule(1.0), 1000, fan_in_axes=rule)
        else:
            tx = scale_by_amac(1000, fan_in_axes=rule)
        like = jax.tree.map(jnp.zeros_like, gradient)
        return tx.update(gradient, tx.init(like), like)[0]

    together = direction(gradient, rule)["blocks"]["kernel"]
    for layer in range(3):
        alone = direction({"kernel": gradient["blocks"]["kernel"][layer]}, None)["kernel"]
        np.testing.assert_allclose(together[layer], alone, rtol=1e-5, atol=1e-6)


def test_it_is_a_core():
    settings: dict[str, Any] = {"weight_decay": 0.3, "average_start": 5}
    composed = amac_jax.compose(scale_by_amac(STEPS), schedule, **settings)
    whole = amac_jax.amac(schedule, STEPS, **settings, average_period=1, decay_floor=None)
    ends = [run[-1] for run in runs(composed, whole)]
    assert_close(*(params for params, _ in ends))
    assert float(amac_jax.learning_rate(ends[0][1])) == float(schedule(STEPS - 1))


def test_a_direction_has_no_learning_rate():
    state = scale_by_amac(STEPS).init(LIKE)
    with pytest.raises(ValueError, match="got none of them"):
        amac_jax.learning_rate(state)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"core": "lion"}, "core must be 'muon', 'adam' or a transformation, got 'lion'"),
        ({"core": optax.scale_by_rms(), "b1": 0.5}, "b1 must be given to a core of your own"),
        ({"core": amac_jax.adam(0.1)}, "core must be a scale_by_* transformation"),
        ({"b1": 1.0}, "b1 must be in [0, 1), got 1.0"),
        ({"clip_norm": 0.0}, "clip_norm must be in (0, inf], got 0.0"),
        ({"noise": -1.0}, "noise must be in [0, inf), got -1.0"),
        ({"centralize": "maybe"}, "centralize must be 'auto' or in [0, 1]"),
        ({"relative_noise": True}, "relative_noise needs noise"),
        ({"state_dtype": "float8"}, "state_dtype must be"),
    ],
)
def test_what_is_refused(keywords, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        scale_by_amac(STEPS, **keywords)
