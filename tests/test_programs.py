"""What `benchmarks/programs.py` counts in an HLO text: worked by hand, and beside XLA's count."""

import doctest

import jax
import optax
import pytest

from benchmarks import programs, steps

MATRIX = 4 * 100 * 10  # bytes of f32[100,10], the array of the snippets


def entry(body: str, others: str = "") -> programs.Part:
    """The part of an entry with two matrices, `%a` and `%b`, as parameters."""
    return programs.program(f"""HloModule jit_step, is_scheduled=true
{others}
ENTRY %main (a: f32[100,10], b: f32[100,10], at: s32[], due: pred[]) -> f32[100,10] {{
  %a = f32[100,10]{{1,0}} parameter(0)
  %b = f32[100,10]{{1,0}} parameter(1)
  %at = s32[] parameter(2)
  %due = pred[] parameter(3)
{body}
}}
""")


def moved(body: str, others: str = "") -> float:
    return sum(kernel.bytes for kernel in entry(body, others).kernels)


def fused(computation: str, result: str = "f32[100,10]") -> str:
    return f"""
%fused (x: f32[100,10], y: f32[100,10], i: s32[]) -> {result} {{
  %x = f32[100,10]{{1,0}} parameter(0)
  %y = f32[100,10]{{1,0}} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
{computation}
}}
"""


def fusion(result: str = "f32[100,10]{1,0}") -> str:
    return f"  ROOT %f = {result} fusion(%a, %b, %at), kind=kLoop, calls=%fused"


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(programs).failed == 0
    assert doctest.testmod(programs).attempted > 0


def test_what_moves_nothing_is_not_a_kernel():
    part = entry("""  %t = (f32[100,10]{1,0}, s32[]) tuple(%a, %at)
  %x = f32[100,10]{1,0} get-tuple-element(%t), index=0
  %c = f32[] constant(1)
  ROOT %y = f32[10,100]{1,0} bitcast(%x)""")
    assert part == programs.Part((), (), (), 0, ())


def test_an_instruction_reads_its_operands_and_writes_its_result():
    body = '  ROOT %c = bf16[100,10]{1,0} convert(%a), metadata={op_name="jit(step)/convert"}'
    (kernel,) = entry(body).kernels
    assert kernel == ("jit(step)/convert", "convert", MATRIX + MATRIX / 2, 0.0)


def test_a_fusion_reads_every_operand_once():
    inside = fused("""  %m = f32[100,10]{1,0} multiply(%x, %x)
  ROOT %s = f32[100,10]{1,0} add(%m, %y)""")
    assert moved(fusion(), inside) == 3 * MATRIX  # the place is not used


def test_a_fusion_reads_the_slices_alone_of_what_it_slices():
    inside = fused(
        """  %r = f32[1,10]{1,0} dynamic-slice(%x, %i, %zero), dynamic_slice_sizes={1,10}
  %s = f32[1,10]{1,0} slice(%x), slice={[0:1], [0:10]}
  %t = f32[1,10]{1,0} slice(%y), slice={[0:1], [0:10]}
  %u = f32[1,10]{1,0} add(%r, %s)
  ROOT %v = f32[1,10]{1,0} add(%u, %t)""",
        "f32[1,10]",
    )
    assert moved(fusion("f32[1,10]{1,0}"), inside) == (2 + 1 + 1) * 40 + 4


def test_a_fusion_reads_all_of_what_it_slices_and_uses_whole():
    inside = fused(
        """  %s = f32[1,10]{1,0} slice(%x), slice={[0:1], [0:10]}
  %p = f32[100,10]{1,0} broadcast(%s), dimensions={0,1}
  ROOT %q = f32[100,10]{1,0} add(%p, %x)"""
    )
    assert moved(fusion(), inside) == 2 * MATRIX  # neither %b nor the place is used


def test_an_update_in_place_moves_the_update_alone():
    inside = fused("""  %r = f32[1,10]{1,0} slice(%y), slice={[0:1], [0:10]}
  ROOT %u = f32[100,10]{1,0} dynamic-update-slice(%x, %r, %i, %zero)""")
    assert moved(fusion(), inside) == 40 + 40 + 4  # slice read, row written, place read
    outside = """  %r = f32[1,10]{1,0} constant({...})
  ROOT %u = f32[100,10]{1,0} dynamic-update-slice(%a, %r, %at, %at)"""
    assert moved(outside) == 2 * 40


def test_what_is_in_fast_memory_is_not_counted():
    part = entry("""  %s = (f32[100,10]{1,0:S(1)}, f32[100,10]{1,0}, u32[]{:S(2)}) copy-start(%a)
  %v = f32[100,10]{1,0:S(1)} copy-done(%s)
  %n = f32[100,10]{1,0:S(1)} negate(%v)
  ROOT %w = f32[100,10]{1,0} add(%n, %b)""")
    assert [kernel.bytes for kernel in part.kernels] == [MATRIX, 0, 2 * MATRIX]
    assert part.copies == ()  # it is fetched, once


def test_a_slice_that_is_fetched_is_read_alone():
    part = entry("""  %s = ((f32[100,10]{1,0}), f32[25,10]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a)
  ROOT %v = f32[25,10]{1,0:S(1)} slice-done(%s)""")
    assert [(kernel.opcode, kernel.bytes) for kernel in part.kernels] == [("slice", MATRIX / 4)]


@pytest.mark.parametrize(
    "body",
    [
        "  ROOT %c = f32[100,10]{1,0} copy(%a)",
        """  %s = (f32[100,10]{1,0}, f32[100,10]{1,0}, u32[]{:S(2)}) copy-start(%a)
  ROOT %c = f32[100,10]{1,0} copy-done(%s)""",
    ],
)
def test_a_copy_within_device_memory(body):
    part = entry(body)
    assert part.copies == (MATRIX,)
    assert [kernel.bytes for kernel in part.kernels] == [2 * MATRIX]


BRANCHES = """
%keep (k: f32[100,10]) -> f32[100,10] {
  ROOT %k = f32[100,10]{1,0} parameter(0)
}

%fold (l: f32[100,10]) -> f32[100,10] {
  %l = f32[100,10]{1,0} parameter(0)
  ROOT %m = f32[100,10]{1,0} negate(%l), backend_config={"reification_cost":[{"exec_time_us":2.5}]}
}
"""
SCOPE = 'metadata={op_name="jit(step)/lookahead/cond"}'


@pytest.mark.parametrize(
    "branches",
    [
        "branch_computations={%keep, %fold}",
        "true_computation=%keep, false_computation=%fold",
    ],
)
def test_a_conditional_counts_by_how_often_its_branches_run(branches):
    part = entry(
        f"""  %n = f32[100,10]{{1,0}} negate(%b)
  ROOT %c = f32[100,10]{{1,0}} conditional(%due, %a, %n), {branches}, {SCOPE}""",
        BRANCHES,
    )
    assert [kernel.bytes for kernel in part.kernels] == [2 * MATRIX]
    ((scope, (keep, fold)),) = part.conditionals
    assert scope == "jit(step)/lookahead/cond"
    assert keep.kernels == ()
    assert [kernel.bytes for kernel in fold.kernels] == [2 * MATRIX]
    assert part.expected({"jit(step)/lookahead/cond": 0.25}.__getitem__) == 2.5 * MATRIX
    assert part.expected(lambda _: 0.2, lambda kernel: kernel.modelled) == pytest.approx(0.5)
    assert list(part.everywhere()) == [part, keep, fold]


def test_a_branch_s_own_conditional_counts_in_the_branch_s_share():
    middle = (
        BRANCHES
        + """
%middle (p: pred[], o: f32[100,10]) -> f32[100,10] {
  %p = pred[] parameter(0)
  %o = f32[100,10]{1,0} parameter(1)
  ROOT %d = f32[100,10]{1,0} conditional(%p, %o, %o), branch_computations={%keep, %fold}
}
"""
    )
    body = "  ROOT %c = f32[100,10] conditional(%due, %a, %a), branch_computations={%fold, %middle}"
    part = entry(body, middle)
    inner = 0.25 * 2 * MATRIX  # the cheaper branch, where `fold` is the dearer
    assert part.expected(lambda _: 0.25) == 0.25 * 2 * MATRIX + 0.75 * inner
    assert len(list(part.everywhere())) == 5


def test_a_loop_counts_once():
    loop = (
        BRANCHES
        + """
%more (c: f32[100,10]) -> pred[] {
  %c = f32[100,10]{1,0} parameter(0)
  ROOT %yes = pred[] constant(true)
}
"""
    )
    part = entry("  ROOT %w = f32[100,10]{1,0} while(%a), condition=%more, body=%fold", loop)
    assert part.loops == 1
    assert [kernel.bytes for kernel in part.kernels] == [2 * MATRIX]


def test_a_collective_counts_what_a_device_sends():
    part = entry("""  %s = f32[100,10]{1,0} all-reduce-start(%a), to_apply=%sum
  %r = f32[100,10]{1,0} all-reduce-done(%s)
  ROOT %g = f32[800,10]{1,0} all-gather(%r), dimensions={0}""")
    assert part.collectives == (("all-reduce", MATRIX), ("all-gather", MATRIX))


def test_the_workspace_of_a_custom_call_is_not_traffic():
    body = """  %g = (f32[100,10]{1,0}, s8[4194304]{0}) custom-call(%a, %b), target="x"
  ROOT %p = f32[100,10]{1,0} get-tuple-element(%g), index=0"""
    assert moved(body) == 3 * MATRIX


@pytest.mark.parametrize(
    ("config", "estimate"),
    [
        ('{"reification_cost":[{"end_to_end_cycles":1,"exec_time_us":0.047,"name":""}]}', 0.047),
        ('{"window_config":{"estimated_cycles":"117512","iteration_bounds":["4"]}}', 117512.0),
        ('{"flag_configs":[]}', 0.0),
    ],
)
def test_the_compiler_s_estimate(config, estimate):
    (kernel,) = entry(f"  ROOT %n = f32[100,10] negate(%a), backend_config={config}").kernels
    assert kernel.modelled == estimate


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="XLA's count for CPU")
@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize(
    ("make", "bytes_"),
    [(lambda: optax.adamw(1e-3), 40), (lambda: steps.amac(core="adam"), 72)],
    ids=["optax.adamw", "amac, core='adam'"],
)
def test_it_counts_as_xla_does(make, bytes_):
    params = {
        f"layer_{i}": {"kernel": jax.ShapeDtypeStruct((512, 1024), "float32")} for i in range(2)
    }
    # XLA makes other loops in the tests' fast compilation.
    program = steps.lowered(make(), params).compile({"xla_cpu_use_fusion_emitters": True})
    ours = programs.facts(program).expected(lambda _: 1.0) / steps.count_of(params)
    assert ours == pytest.approx(steps.bytes_per_parameter(program, params), rel=1e-3)
    assert ours == pytest.approx(bytes_, rel=0.01)
