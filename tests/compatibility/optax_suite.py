"""Optax's own tests, as installed, on our factories; prints what came of them.

    python tests/compatibility/optax_suite.py

Five CPU minutes. Nothing of Optax is copied or changed: the source of each of its test files is
read, the tables of optimizers in it are exchanged for ours, and the result is executed as a module.
"""

import ast
import importlib.util
import inspect
import json
import os
import re
import sys
import unittest
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial, wraps
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import amac_jax
from tests import warm

SOAK = os.environ.get("AMAC_JAX_SOAK") == "1"
LEFT_TO_SOAK = "only with AMAC_JAX_SOAK=1"
OPTAX_CORES = "momentum|nesterov|adagrad|rmsprop|amsgrad|adamax|nadam"  # little here is ours
DEVICES = 8  # as many as the sharding tests make a mesh of

NEED_OBJECTIVE = ("sophia", "newton")
REFUSE_COMPLEX = ("lion", "sophia", "newton", "amac")

FACTORIES: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "sgd": amac_jax.sgd,
    "momentum": amac_jax.momentum,
    "nesterov": amac_jax.nesterov,
    "adagrad": amac_jax.adagrad,
    "rmsprop": amac_jax.rmsprop,
    "adam": amac_jax.adam,
    "adamw": amac_jax.adamw,
    "amsgrad": amac_jax.amsgrad,
    "adamax": amac_jax.adamax,
    "nadam": amac_jax.nadam,
    "radam": amac_jax.radam,
    "adabelief": amac_jax.adabelief,
    "lion": amac_jax.lion,
    "muon": amac_jax.muon,
    "sophia": amac_jax.sophia,
    "newton": amac_jax.newton,
    "amac": amac_jax.amac,
    "compose": partial(amac_jax.compose, optax.scale_by_rms()),
}

# What each is built with where it has to come within 3 % of a minimum, in 10,000 steps from alias
# and 30,000 from contrib. The rates are Optax's for the optimizers that it has too, but for those
# with a reason.
SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 1e-3, "momentum": 0.9},
    "momentum": {"learning_rate": 1e-3},
    "nesterov": {"learning_rate": 3e-4},  # at 1e-3 it diverges on the complex Rosenbrock function
    "adagrad": {"learning_rate": 1.0},
    "rmsprop": {"learning_rate": 5e-3},
    "adam": {"learning_rate": 0.1},
    "adamw": {"learning_rate": 0.03},  # at 0.1 within 1.4 %, in a limit cycle
    "amsgrad": {"learning_rate": 0.01},  # first steps are 30 times as long, by the bias of v
    "adamax": {"learning_rate": 0.1},
    "nadam": {"learning_rate": 0.01},
    "radam": {"learning_rate": 5e-3},
    "adabelief": {"learning_rate": 0.01},
    "lion": {"learning_rate": amac_jax.cosine(0.01, 10_000)},  # else its steps never shrink
    "muon": {"learning_rate": amac_jax.cosine(0.03, 10_000), "weight_decay": None},  # as lion's
    "sophia": {"learning_rate": 0.01},
    "newton": {"learning_rate": 1.0},
    # With momentum 0.9 on top of Adam's it ends 5.3e-2 from the Rosenbrock function's minimum,
    # where 3e-2 is asked. Centralized at full strength to the end, no mean over a kernel's fan-in
    # would ever move.
    "amac": {
        "learning_rate": 0.01,
        "total_steps": 10_000,
        "momentum": 0.5,
        "centralize": amac_jax.linear_anneal(1.0, 5_000),
    },
    "compose": {
        "learning_rate": 0.01,
        "clip_norm": 1.0,
        "momentum": 0.9,
        "dampening": 0.9,
        "weight_decay": 0.01,
        "layer_multipliers": 0.5,
        "sync_period": 5,
        "average_start": 5_000,
        "skip_nonfinite": True,
        "record_metrics": True,
    },
}
"""Of the optimizers in `alias_test` and `contrib._common_test`."""

# Under `optax.contrib.mechanize`, which finds the scale of the rate by itself.
MECHANIZED: dict[str, dict[str, Any]] = {
    name: {"learning_rate": 1.0}
    for name in ("sgd", "adam", "adamw", "adamax", "amsgrad", "rmsprop", "adabelief", "radam")
} | {
    "momentum": {"learning_rate": 1.0},
    "lion": {"learning_rate": 1.0, "b1": 0.99},
}


def squares(params: Any) -> jax.Array:
    return sum((jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(params)), jnp.float32(0))


class Targets:
    """Remembers the objective of the running test, which only some of Optax's tests pass on."""

    def __init__(self) -> None:
        self.objective: Callable[[Any], Any] = squares

    def remembered(self, setup: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(setup)
        def remember(*args):
            found = setup(*args)
            self.objective = found[2]
            return found

        return remember

    def factory(self, name: str) -> Callable[..., optax.GradientTransformation]:
        """Our factory of that name, for one test."""
        self.objective = squares
        return self.adapted(name, FACTORIES[name])

    def adapted(self, name: str, factory: Callable[..., Any]) -> Callable[..., Any]:
        """The factory, its rate annotated as Optax's are, given the objective if it needs one."""

        @wraps(factory)
        def build(*args, **kwargs):
            tx = factory(*args, **kwargs)
            init = refusing_complex(tx.init) if name in REFUSE_COMPLEX else tx.init
            update = self.with_objective(tx.update) if name in NEED_OBJECTIVE else tx.update
            return optax.GradientTransformationExtraArgs(init, update)

        build.__signature__ = annotated(inspect.signature(factory))  # pyright: ignore[reportFunctionMemberAccess]
        return build

    def with_objective(self, update: Callable[..., Any]) -> Callable[..., Any]:
        def with_value_fn(updates, state, params=None, *, obj_fn=None, **extra):
            value_fn = obj_fn or self.objective  # `obj_fn` is what Optax's Sophia calls it
            return update(updates, state, params, **{"value_fn": value_fn, **extra})

        return with_value_fn


def refusing_complex(init: Callable[..., Any]) -> Callable[..., Any]:
    """Skips a test with complex parameters, once `init` has refused them."""

    def checked(params):
        if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(params)):
            try:
                init(params)
            except ValueError as error:
                if "complex" in str(error):
                    raise unittest.SkipTest("refuses complex parameters by name") from error
                raise
            raise AssertionError("init accepts complex parameters, which update cannot work with")
        return init(params)

    return checked


def annotated(signature: inspect.Signature) -> inspect.Signature:
    """With `learning_rate` annotated as a schedule, by which Optax's tests know that it may be."""
    parameters = [
        p.replace(annotation=optax.ScalarOrSchedule) if name == "learning_rate" else p
        for name, p in signature.parameters.items()
    ]
    return signature.replace(parameters=parameters)


class Shipped(NamedTuple):
    """A test file that Optax ships, and what is done with it."""

    module: str
    case: str  # its class that tests a table of optimizers
    tables: Callable[[Targets], Mapping[str, Any]]  # ours, under the names of theirs
    counts: Mapping[str, int]  # tests of each method, of all of our rows
    resolver: str | None = None  # the function that finds a factory by its name
    kept_out: Mapping[str, str] = {}  # classes and methods that have no such table, and the reason
    soak: str = "$."  # a pattern that finds the names of the tests left to AMAC_JAX_SOAK=1: none


def rows(settings: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"opt_name": name, "opt_kwargs": dict(kwargs)} for name, kwargs in settings.items()]


def alias_tables(targets: Targets) -> dict[str, Any]:
    return {"_OPTIMIZERS_UNDER_TEST": tuple(rows(SETTINGS))}


def contrib_tables(targets: Targets) -> dict[str, Any]:
    # Their file adds to the first sgd in its three wrappers, and `mechanize` to the second.
    return {"_MAIN_OPTIMIZERS_UNDER_TEST": rows(SETTINGS), "_BASE_OPTIMIZERS": rows(MECHANIZED)}


def float64_tables(targets: Targets) -> dict[str, Any]:
    plain = {"plain_sgd": (amac_jax.sgd, {"learning_rate": 0.1})}
    optimizers = {
        name: (targets.adapted(name, FACTORIES[name]), kwargs) for name, kwargs in SETTINGS.items()
    }
    named = {**TECHNIQUES, **plain, **optimizers}
    return {"ALL_MODULES": [(name, *built) for name, built in named.items()]}


def sharding_tables(targets: Targets) -> dict[str, Any]:
    named = {}
    for name, factory, kwargs in float64_tables(targets)["ALL_MODULES"]:
        # `optax.apply_if_finite` has zeros of another sharding in one branch, outside jit.
        kwargs = {key: value for key, value in kwargs.items() if key != "skip_nonfinite"}
        named[name] = factory(**kwargs)
    return {"OPTIMIZERS": named}


TECHNIQUES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "centralize": (amac_jax.centralize, {}),
    "clip_by_value": (amac_jax.clip_by_value, {"limit": 1.0}),
    "clip_by_global_norm": (amac_jax.clip_by_global_norm, {"limit": 1.0}),
    "clip_by_unit_norm": (amac_jax.clip_by_unit_norm, {"ratio": 0.01}),
    "inject_noise": (amac_jax.inject_noise, {"scale": 0.1}),
    "inject_noise_threefry": (amac_jax.inject_noise, {"scale": 0.1, "sampler": "threefry"}),
    "heavy_ball": (amac_jax.heavy_ball, {"decay": 0.9, "dampening": 0.9}),
    "decay_weights": (amac_jax.decay_weights, {"rate": 0.1}),
    "lookahead": (amac_jax.lookahead, {"sync_period": 2}),
    "lookahead_bfloat16": (amac_jax.lookahead, {"sync_period": 2, "state_dtype": "bfloat16"}),
    "average_weights": (amac_jax.average_weights, {"start": 1}),
    "average_weights_bfloat16": (
        amac_jax.average_weights,
        {"start": 1, "state_dtype": "bfloat16"},
    ),
    "scale_by_layer": (amac_jax.scale_by_layer, {"multipliers": 0.5}),
    "reduce_on_plateau": (
        lambda **kwargs: with_value(amac_jax.reduce_on_plateau(**kwargs)),
        {"patience": 2},
    ),
    "accumulate_gradients": (
        amac_jax.accumulate_gradients,
        {"tx": amac_jax.adam(0.1), "steps": 2},
    ),
    "store_state_in": (amac_jax.store_state_in, {"tx": optax.adam(0.1), "dtype": "bfloat16"}),
    "amac_bfloat16": (
        amac_jax.amac,
        {"learning_rate": 0.1, "total_steps": 10, "state_dtype": "bfloat16"},
    ),
    "amac_reference": (amac_jax.amac_reference, {"lr": 0.1}),
}


def with_value(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    def update(updates, state, params=None, **extra):
        return tx.update(updates, state, params, **{"value": 1.0, **extra})

    return optax.GradientTransformationExtraArgs(tx.init, update)


OURS = len(SETTINGS)
WRAPPED = OURS + 3  # their file's own rows: sgd in mechanize, schedule_free, reduce_on_plateau
ALL = WRAPPED + len(MECHANIZED)
ALONE = len(TECHNIQUES) + 1 + OURS
FILES = {
    "alias_test": Shipped(
        "optax._src.alias_test",
        "AliasTest",
        alias_tables,
        {
            "test_optimization": 4 * OURS,
            "test_optimizers_accept_extra_args": OURS,
            "test_optimizers_can_be_wrapped_in_inject_hyperparams": OURS,
            "test_preserve_dtype": 2 * OURS,
            "test_state_shape_dtype_shard_stability": 6 * OURS,
            "test_gradient_accumulation": 2 * OURS,
        },
        resolver="_get_opt",
        kept_out={
            "LBFGSTest": "tests optax.lbfgs and its line searches, which we have no version of",
            "test_explicit_dtype": "no table: Optax's accumulator_dtype and mu_dtype, for which we "
            "have state_dtype (tests/test_low_precision.py)",
        },
        # The Rosenbrock function is the harder target. Complex parameters turn with their phase in
        # test_trees.py, the classics' equations are followed in test_classic.py, and the contract
        # has the rest.
        soak="|".join(
            (
                rf"parabola|complex64|test_optimization\w*\[({OPTAX_CORES})",
                r"test_(gradient|preserve|state_shape|\w+extra_args|\w+_inject_)",
            )
        ),
    ),
    "_common_test": Shipped(
        "optax.contrib._common_test",
        "ContribTest",
        contrib_tables,
        {
            "test_optimizers_accept_extra_args": 2 * ALL,
            "test_optimizers": 4 * ALL,
            "test_optimizers_can_be_wrapped_in_inject_hyperparams": WRAPPED,
            "test_preserve_dtype": 2 * WRAPPED,
            "test_gradient_accumulation": 2 * WRAPPED,
            "test_state_shape_dtype_shard_stability": 4 * ALL,
            "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such": ALL,
        },
        resolver="_get_opt_factory",
        # What alias_test or test_classic.py has too, but for the wrappers; in our tests every rate
        # may be a schedule.
        soak="|".join(
            (
                r"test_state_shape",
                r"test_optimizers\d+\[(\w+-)?(mechanize-)?parabola",
                r"test_optimizers\d+\[\w+-(rosenbrock|m\w+)-float32]",
                r"mechanize-matrix_parabola",
                r"test_(gradient|preserve|\w+extra_args|\w+_inject_)\w*\[\w+(-bfloat16|-float32)?]",
                r"type_annotated|extra_args\w*\[\w+-mechanize",
            )
        ),
    ),
    "float64_test": Shipped(
        "optax._src.float64_test",
        "Float64Test",
        float64_tables,
        {"test_mixed_dtype_input_outputs": ALONE},
    ),
    "sharding_test": Shipped(
        "optax._src.sharding_test",
        "ShardingTest",
        sharding_tables,
        {
            "test_init_with_abstract_input": ALONE,
            "test_state_sharding_type_init_match_update": ALONE,
            "test_state_sharding_type_preserved_with_jit": ALONE,
        },
        kept_out={
            "test_microbatch_with_explicit_sharding": "no table: tests optax.microbatching alone"
        },
        # A chain, rounded state and an objective; tests/test_sharding.py has every factory.
        soak=r"^(?!.*_(amac|lookahead_bfloat16|sophia)$)",
    ),
}


def load(name: str) -> type[unittest.TestCase]:
    """The class of a shipped file that tests a table of optimizers, with our table.

    Raises:
      AssertionError: if the file is not made as this expects, or has other or fewer tests.
    """
    shipped, targets = FILES[name], Targets()
    module = executed(shipped, targets)
    if hasattr(module, "jax"):
        # They compare versions as strings, by which 0.10 comes before 0.7 and everything skips.
        module.jax = SimpleNamespace(**{**vars(jax), "__version__": Version(jax.__version__)})  # pyright: ignore[reportAttributeAccessIssue]
    shipped_case = getattr(module, shipped.case)
    tests = {}
    for test in unittest.TestLoader().getTestCaseNames(shipped_case):
        if method_of(test, [*shipped.counts, *shipped.kept_out]) in shipped.counts:
            function = getattr(shipped_case, test)
            label = labelled(test, getattr(function, "__x_params_repr__", ""))
            if re.search(shipped.soak, label) and not SOAK:
                function = unittest.skip(LEFT_TO_SOAK)(function)
            tests[label] = function
        delattr(shipped_case, test)
    found = Counter(method_of(test, shipped.counts) for test in tests)
    if found != Counter(shipped.counts):
        raise AssertionError(f"{shipped.module} gave {dict(found)}, not {dict(shipped.counts)}")
    return type(shipped.case, (shipped_case,), {"__module__": __name__, **tests})


def executed(shipped: Shipped, targets: Targets) -> ModuleType:
    """A shipped file as a module, with our tables and our way to find a factory."""
    path = installed(shipped)
    tree = ast.parse(path.read_text(), str(path))
    tables = dict(shipped.tables(targets))
    checked_structure(tree, shipped, tables)

    for statement in tree.body:
        match statement:
            # The first assignment to each; their file may then wrap or extend it.
            case ast.Assign(targets=[ast.Name(id=name)]) if f"ours {name}" not in tables:
                if name in tables:
                    statement.value = ast.parse(f"OUR_TABLES[{name!r}]", mode="eval").body
                    tables[f"ours {name}"] = tables[name]
            case ast.FunctionDef(name=name) if name == shipped.resolver:
                # Theirs gets the name alone, or the test and the name.
                statement.decorator_list = [ast.Name("OUR_RESOLVER", ast.Load())]
            case ast.FunctionDef(name=name) if name.startswith("_setup_"):
                statement.decorator_list = [ast.Name("OUR_TARGET", ast.Load())]
    module = ModuleType(f"{__name__}.{shipped.module}")
    module.__dict__.update(
        OUR_TABLES=tables,
        OUR_RESOLVER=lambda theirs: lambda *args: targets.factory(args[-1]),
        OUR_TARGET=targets.remembered,
    )
    sys.modules[module.__name__] = module  # where unittest and pickle look for it
    exec(compile(ast.fix_missing_locations(tree), path, "exec"), module.__dict__)
    return module


def installed(shipped: Shipped) -> Path:
    spec = importlib.util.find_spec(shipped.module)
    if spec is None or spec.origin is None:
        raise AssertionError(f"Optax ships no {shipped.module}")
    return Path(spec.origin)


def checked_structure(tree: ast.Module, shipped: Shipped, tables: Iterable[str]) -> None:
    """Refuses a file in which the exchange would miss something, or a test would be overlooked."""
    classes = {
        node.name: {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assigned = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    if missing := set(tables) - assigned:
        raise AssertionError(f"{shipped.module} assigns no {', '.join(sorted(missing))}")
    if shipped.resolver is not None and shipped.resolver not in functions:
        raise AssertionError(f"{shipped.module} has no function {shipped.resolver}")
    tests = {n for n in classes.get(shipped.case, set()) if n.startswith("test")}
    theirs = tests | (set(classes) - {shipped.case})
    known = {*shipped.counts, *shipped.kept_out}
    if theirs != known:
        raise AssertionError(
            f"{shipped.module}: neither run nor kept out: {sorted(theirs - known)}; "
            f"not there: {sorted(known - theirs)}"
        )


def method_of(test: str, methods: Iterable[str]) -> str:
    """The method that a parameterized test's name begins with."""
    return max((method for method in methods if test.startswith(method)), key=len)


def labelled(test: str, parameters: str) -> str:
    """The test's name with what its parameters say, to be found by `pytest -k`."""
    words = re.findall(
        r"(?:opt|wrapper)_name='(\w+)'|_setup_(\w+)|jax\.numpy\.(\w+)|dtype='(\w+)'", parameters
    )
    label = "-".join(word for found in words for word in found if word)
    return f"{test}[{label}]" if label else test


class Version(str):
    """A version that compares by its numbers."""

    def __lt__(self, other: str) -> bool:
        return numbers(self) < numbers(other)


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def run(name: str) -> dict[str, list[str]]:
    """What came of each test of a shipped file: "passed", "failed" or "skipped", and why."""
    outcomes: dict[str, list[str]] = {}
    case = load(name)
    for test in unittest.TestLoader().getTestCaseNames(case):
        result = unittest.TestResult()
        case(test).run(result)
        wrong = [trace for _, trace in (*result.failures, *result.errors)]
        skipped = [reason for _, reason in result.skipped]
        kind = "failed" if wrong else "skipped" if skipped else "passed"
        outcomes[test] = [kind, *(wrong or skipped)]
    return outcomes


def run_apart(name: str, *, soak: bool = SOAK) -> dict[str, list[str]]:
    """The same in a process of its own, whose CPU is 8 devices."""
    settings = {
        "JAX_NUM_CPU_DEVICES": str(DEVICES),
        "JAX_PLATFORMS": "cpu",
        "AMAC_JAX_SOAK": str(int(soak)),
    }
    command = [sys.executable, "-m", "tests.compatibility.optax_suite", name]
    ran = warm.run(command, os.environ | settings, Path(__file__).parents[2])
    if ran.returncode:
        raise AssertionError(ran.stderr)
    return json.loads(ran.stdout.splitlines()[-1])


def report() -> int:
    """Prints passed, failed and skipped of every shipped file; the number of those that failed."""
    failures = 0
    print(f"optax {optax.__version__}, jax {jax.__version__}; their tests on our optimizers")
    for name, shipped in FILES.items():
        outcomes = run_apart(name, soak=True)
        kinds = Counter(kind for kind, *_ in outcomes.values())
        failures += kinds["failed"]
        print(
            f"{shipped.module}: {kinds['passed']} passed, {kinds['failed']} failed, "
            f"{kinds['skipped']} skipped"
        )
        reasons = Counter(
            why for kind, *whys in outcomes.values() for why in whys if kind == "skipped"
        )
        for reason, count in reasons.most_common():
            print(f"  skipped {count}: {reason}")
        for kept_out, reason in shipped.kept_out.items():
            print(f"  kept out {kept_out}: {reason}")
        for test, (kind, *whys) in outcomes.items():
            if kind == "failed":
                print(f"  failed {test}: {error_in(whys[-1])}")
    return failures


def error_in(trace: str) -> str:
    """The error's own line of a traceback, and what of an array comparison follows it."""
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    errors = [i for i, line in enumerate(lines) if re.match(r"\w*(Error|Exception)\b", line)]
    return " ".join(lines[errors[-1] : errors[-1] + 4] if errors else lines[-1:])[:300]


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(min(report(), 1))
    assert jax.device_count() == DEVICES, jax.devices()
    print(json.dumps(run(sys.argv[1])))
