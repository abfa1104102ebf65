"""The recipes against the settings they are known by, written out in Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import amac_jax
from amac_jax import recipes
from amac_jax.optimizers import amac_techniques
from tests.helpers import assert_close, normals, train

LIKE = {"kernel": np.zeros((4, 3), np.float32), "bias": np.zeros(3, np.float32)}
STEPS = 20
WHOLE = r"must be a whole number in \[1, inf\)"


PARAMS = jax.device_get(next(normals(0, LIKE)))
GRADIENTS = jax.tree.map(lambda *steps: 3 * np.stack(steps), *normals(1, LIKE, STEPS))


def runs(tx: optax.GradientTransformation) -> dict[str, np.ndarray]:
    """The parameters after every step."""

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    @jax.jit
    def scanned(params, gradients):
        return jax.lax.scan(step, (params, tx.init(params)), gradients)[1]

    return jax.device_get(scanned(PARAMS, GRADIENTS))


EXPECTED = {
    "cnn": (
        lambda: recipes.cnn(STEPS),
        lambda: optax.chain(
            optax.add_decayed_weights(1e-4, mask={"kernel": True, "bias": False}),
            optax.sgd(
                lambda count: 0.1 * (1 + jnp.cos(jnp.pi * (count + 1) / STEPS)) / 2,
                momentum=0.9,
                nesterov=True,
            ),
        ),
    ),
    "cnn, step": (
        lambda: recipes.cnn(STEPS, 0.2, weight_decay=0.01, schedule="step"),
        lambda: optax.chain(
            optax.add_decayed_weights(0.01, mask={"kernel": True, "bias": False}),
            optax.sgd(
                optax.piecewise_constant_schedule(0.2, {10: 0.1, 15: 0.1}),
                momentum=0.9,
                nesterov=True,
            ),
        ),
    ),
    "transformer": (
        lambda: recipes.transformer(STEPS),
        lambda: optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(
                lambda count: jnp.where(
                    count < 2,
                    3e-4 * (count + 1) / 2,
                    3e-4 * (1 + jnp.cos(jnp.pi * (count - 1) / 18)) / 2,
                ),
                weight_decay=0.01,
                mask={"kernel": True, "bias": False},
            ),
        ),
    ),
    "rnn": (
        lambda: recipes.rnn(clip_norm=5.0),
        lambda: optax.chain(optax.clip_by_global_norm(5.0), optax.adam(1e-3)),
    ),
    "gan, generator": (lambda: recipes.gan().generator, lambda: optax.adam(2e-4, b1=0.5)),
    "gan, discriminator": (lambda: recipes.gan().discriminator, lambda: optax.adam(2e-4, b1=0.5)),
    "rl": (lambda: recipes.rl(), lambda: optax.adam(3e-4)),
}


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_is_what_it_says(name):
    ours, theirs = EXPECTED[name]
    assert_close(runs(ours()), runs(theirs()), 1e-6)


CORES = {
    "transformer": optax.scale_by_adam,
    "rnn": optax.scale_by_adam,
    "rl": optax.scale_by_adam,
    "gan": lambda: optax.scale_by_adam(b1=0.5),
    "cnn": lambda: optax.chain(
        optax.add_decayed_weights(1e-4, mask=amac_jax.kernel_mask), optax.trace(0.9, nesterov=True)
    ),
}
REST = {
    "transformer": (amac_jax.warmup_cosine(3e-4, STEPS, 2), {"weight_decay": 0.01}),
    "rnn": (1e-3, {}),
    "rl": (3e-4, {}),
    "gan": (2e-4, {}),
    "cnn": (amac_jax.cosine(0.1, STEPS), {}),
}
CLIPPED = ("transformer", "rnn")
RECIPES = {
    "cnn": recipes.cnn,
    "transformer": recipes.transformer,
    "rnn": recipes.rnn,
    "gan": recipes.gan,
    "rl": recipes.rl,
}


def test_every_recipe_is_in_these_tables():
    found = {name for name in vars(recipes) if callable(getattr(recipes, name))}
    found = {name for name in found if getattr(recipes, name).__module__ == recipes.__name__}
    assert {name for name in found if name[0] != "_"} - {"Pair"} == RECIPES.keys()
    assert RECIPES.keys() == CORES.keys() == REST.keys()
    assert RECIPES.keys() == {name.split(",")[0] for name in EXPECTED}


@pytest.mark.parametrize("name", RECIPES)
def test_amac_puts_its_techniques_around_the_same_core(name):
    made = RECIPES[name](STEPS, amac=True)
    made = made.generator if name == "gan" else made
    rate, rest = REST[name]
    clip = {"clip_norm": 1.0} if name in CLIPPED else {}
    expected = amac_jax.compose(
        CORES[name](), rate, centralize=True, clip_value=1.0, sync_period=5, slow_step_size=0.8,
        average_start=0.75 * STEPS, average_period=5, **rest, **clip,
    )  # fmt: skip
    found = runs(made)
    assert_close(found, runs(expected))
    plain = RECIPES[name](STEPS)
    plain = plain.generator if name == "gan" else plain
    with pytest.raises(AssertionError):
        assert_close(found, runs(plain))


def test_amac_is_adam_with_amacs_techniques():
    """The defaults of `amac` and of `amac_techniques` are the same."""
    expected = amac_jax.compose(
        optax.scale_by_adam(),
        amac_jax.warmup_cosine(0.01, STEPS, STEPS / 10, end=0.003),
        weight_decay=0.15,
        **amac_techniques(STEPS),
    )
    assert_close(runs(amac_jax.amac(0.01, STEPS, core="adam", decay_floor=None)), runs(expected))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_techniques(name):
    made = RECIPES[name](STEPS, average_start=1, sync_period=None, amac=True)
    made = made.discriminator if name == "gan" else made
    _, state = list(train(made, LIKE, normals(0, LIKE, 3)))[-1]
    amac_jax.averaged_params(state)
    with pytest.raises(ValueError, match="no slow weights"):
        amac_jax.slow_params(state)
    with pytest.raises(TypeError, match="sync_perod"):
        RECIPES[name](STEPS, sync_perod=5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recipes.cnn(100, schedule="linear"), "schedule must be one of 'cosine', 'step'"),
        (lambda: recipes.cnn(0), rf"total_steps {WHOLE}"),
        (
            lambda: recipes.cnn(0, schedule="step"),
            r"total_steps must be a whole number in \[1, inf\)",
        ),
        (
            lambda: recipes.cnn(100.5),
            r"total_steps must be a whole number in \[1, inf\), got 100.5",
        ),
        (lambda: recipes.cnn(100, -0.1), r"learning_rate must be in \[0, inf\).* got -0.1"),
        (lambda: recipes.cnn(100, weight_decay=-1.0), r"weight_decay must be in \[0, inf\)"),
        (lambda: recipes.transformer(100, -1.0), r"learning_rate must be in \[0, inf\)"),
        (lambda: recipes.transformer(0), rf"total_steps {WHOLE}"),
        (lambda: recipes.rnn(learning_rate=-1.0), r"learning_rate must be in \[0, inf\)"),
        (
            lambda: recipes.rnn(amac=True),
            r"total_steps must be a whole number in .* with amac=True",
        ),
        (
            lambda: recipes.transformer(3e-4),
            r"total_steps must be a whole number in .*, got 0.0003",
        ),
        (lambda: recipes.rl(1e-2), f"total_steps {WHOLE}, got 0.01"),
        (lambda: recipes.gan(b1=1.0), r"b1 must be in \[0, 1\)"),
        (lambda: recipes.rl(learning_rate=-1.0), r"learning_rate must be in \[0, inf\)"),
    ],
)
def test_bad_input_is_refused_in_a_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_amacs_own_keywords_mean_what_they_mean_in_amac():
    """Dampening follows the momentum, and the noise is annealed."""
    changes = {"momentum": 0.5, "noise": 0.3, "key": 3}
    rate = amac_jax.warmup_cosine(3e-4, STEPS, STEPS / 10)
    ours = recipes.transformer(STEPS, amac=True, clip_norm=None, **changes)
    expected = amac_jax.compose(
        optax.scale_by_adam(), rate, weight_decay=0.01, key=3,
        **amac_techniques(STEPS, momentum=0.5, noise=0.3),
    )  # fmt: skip
    assert_close(runs(ours), runs(expected))


@pytest.mark.parametrize(
    ("arguments", "decays"),
    [
        ({}, {"kernel": True, "bias": False}),
        ({"decay_mask": True}, {"kernel": True, "bias": True}),
        ({"fan_in_axes": lambda path, leaf: None}, {"kernel": False, "bias": False}),
    ],
)
def test_what_decays_in_the_cnns_recipe_can_be_chosen(arguments, decays):
    params = jax.tree.map(np.ones_like, LIKE)
    tx = recipes.cnn(STEPS, weight_decay=0.5, **arguments)
    # The gradient is 0: the decay alone.
    updates = jax.jit(lambda params: tx.update(LIKE, tx.init(params), params)[0])(params)
    assert {name: bool(np.all(np.asarray(u) < 0)) for name, u in updates.items()} == decays


@pytest.mark.usefixtures("promoting")
def test_the_gans_networks_draw_different_noise_and_b1_may_be_a_schedule():
    generator, discriminator = recipes.gan(noise=0.1, b1=lambda count: 0.5)
    assert_close(runs(recipes.gan(b1=lambda count: 0.5).generator), runs(optax.adam(2e-4, b1=0.5)))
    one, other = runs(generator), runs(discriminator)
    with pytest.raises(AssertionError):
        assert_close(one["kernel"][-1], other["kernel"][-1])
