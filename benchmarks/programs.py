"""What a compiled program moves and runs, read from its scheduled HLO.

Every instruction of the program counts the arrays in device memory that it reads and writes. A
fusion reads each operand once, and of an operand that it slices only the slices. What lives in the
fast memory of a TPU (a memory space other than 0) does not count. The branches of a conditional
are counted one by one, for a step runs one of them.
"""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier",
    "partition-id", "replica-id", "add-dependency", "domain", "conditional", "while", "call",
}  # fmt: skip
"""Instructions that move nothing themselves."""

SLICES = ("slice", "dynamic-slice", "gather")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    inputs: str  # between the parentheses
    attributes: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.inputs)

    def called(self) -> list[str]:
        """The computations that it runs, in the order of a conditional's branches."""
        if branches := re.search(r"branch_computations=\{([^}]*)\}", self.attributes):
            return re.findall(r"%([\w.\-]+)", branches[1])
        names = "calls|body|to_apply|true_computation|false_computation"
        return re.findall(rf"\b(?:{names})=%([\w.\-]+)", self.attributes)

    def scope(self) -> str:
        """The names that JAX gave the operation: jit(step)/lookahead/cond."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    def modelled(self) -> float:
        """The compiler's own estimate: microseconds on a GPU, cycles on a TPU, else 0."""
        found = re.search(r'"(?:exec_time_us|estimated_cycles)":"?([\d.]+)', self.attributes)
        return float(found[1]) if found else 0.0


class Conditional(NamedTuple):
    scope: str
    branches: tuple["Part", ...]


class Kernel(NamedTuple):
    """An instruction that a device starts, and what it moves."""

    scope: str
    opcode: str
    bytes: float
    modelled: float


class Part(NamedTuple):
    """What a computation moves and runs, without the branches of its conditionals."""

    kernels: tuple[Kernel, ...]
    copies: tuple[int, ...]  # the bytes of every array that is copied within device memory
    collectives: tuple[tuple[str, int], ...]  # kind, bytes
    loops: int
    conditionals: tuple[Conditional, ...]

    def everywhere(self) -> Iterator["Part"]:
        """This part and every branch."""
        yield self
        for conditional in self.conditionals:
            for branch in conditional.branches:
                yield from branch.everywhere()

    def expected(
        self,
        share: Callable[[str], float],
        value: Callable[[Kernel], float] = lambda kernel: kernel.bytes,
    ) -> float:
        """The sum over the kernels of a step, with branches by how often they run.

        Args:
          share: from the scope of a conditional to the share of the steps that take its dearer
            branch; the others take its cheaper one.
          value: what is summed: bytes, or the compiler's estimate.
        """
        total = sum(map(value, self.kernels))
        for scope, branches in self.conditionals:
            costs = [branch.expected(share, value) for branch in branches]
            total += share(scope) * max(costs) + (1 - share(scope)) * min(costs)
        return total


def arrays(type_text: str) -> list[tuple[int, int]]:
    """(bytes, memory space) of every array in an HLO type.

    Example:
      >>> arrays("(f32[2,3]{1,0:T(8,128)S(1)}, bf16[4]{0}, pred[])")
      [(24, 1), (8, 0), (1, 0)]
    """
    found = []
    for dtype, shape, layout in re.findall(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", type_text):
        if dtype not in BITS and not dtype.startswith("f8"):
            continue  # tokens
        size = functools.reduce(lambda a, b: a * int(b), filter(None, shape.split(",")), 1)
        space = re.search(r"S\((\d+)\)", layout)
        found.append((size * BITS.get(dtype, 8) // 8, int(space[1]) if space else 0))
    return found


def in_memory(type_text: str) -> int:
    """The bytes of an HLO type that are in device memory."""
    return sum(size for size, space in arrays(type_text) if space == 0)


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of an HLO text by name, and the name of the entry.

    Example:
      >>> text = '''ENTRY %main (a: f32[8]) -> f32[8] {
      ...   %a = f32[8]{0} parameter(0)
      ...   ROOT %b = f32[8]{0} negate(%a), metadata={op_name="jit(f)/neg"}
      ... }'''
      >>> computations, entry = parse(text)
      >>> computations[entry][1].opcode, computations[entry][1].operands
      ('negate', ['a'])
    """
    computations: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    entry = ""
    for line in text.splitlines():
        if line.endswith("{") and (
            head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line)
        ):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line):
            current.append(_instruction(found[1], found[2]))
    return computations, entry


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    type_text, rest = text[:end], text[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    return Instruction(name, type_text, opcode, rest[len(opcode) + 1 : end - 1], rest[end:])


def _closing(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    raise ValueError(f"a parenthesis does not close: {text[:80]}")


def program(text: str) -> Part:
    """What the entry of a scheduled HLO text moves and runs, with its branches."""
    computations, entry = parse(text)

    def part(name: str) -> Part:
        body = computations[name]
        types = {instruction.name: instruction.type for instruction in body}
        kernels: list[Kernel] = []
        copies: list[int] = []
        collectives: list[tuple[str, int]] = []
        conditionals: list[Conditional] = []
        loops = 0
        for one in body:
            opcode = one.opcode.removesuffix("-start")
            if opcode == "conditional":
                conditionals.append(Conditional(one.scope(), tuple(map(part, one.called()))))
            elif opcode in ("while", "call", "async"):
                inner = part(one.called()[0])  # a loop counts once: its length is not known
                loops += inner.loops + (opcode == "while")
                kernels += inner.kernels
                copies += inner.copies
                collectives += inner.collectives
                conditionals += inner.conditionals
            elif opcode not in FREE and not opcode.endswith(("-done", "-update")):
                kernels.append(Kernel(one.scope(), opcode, moved(one, types), one.modelled()))
                copies += copied(one, types)
                if opcode in COLLECTIVES:
                    sent = sum(
                        size for operand in one.operands for size, _ in arrays(types[operand])
                    )
                    collectives.append((opcode, sent))
        return Part(tuple(kernels), tuple(copies), tuple(collectives), loops, tuple(conditionals))

    def copied(one: Instruction, types: dict[str, str]) -> list[int]:
        if one.opcode.removesuffix("-start") != "copy":
            return []
        arrived = arrays(one.type)[: 1 if one.opcode == "copy-start" else None]
        ends = zip(arrived, arrays(types[one.operands[0]]), strict=True)
        # Between device memory and fast memory nothing is copied: it is fetched, or stored.
        return [size for (size, to), (_, source) in ends if to == source == 0]

    def moved(one: Instruction, types: dict[str, str]) -> float:
        if one.opcode == "copy-start":  # (to, from, a flag)
            return in_memory(one.type)
        if one.opcode in ("slice-start", "dynamic-slice-start"):  # ((from), to, a flag)
            (_, source), (size, to) = arrays(one.type)[:2]
            return size * ((source == 0) + (to == 0))
        body = computations[one.called()[0]] if one.opcode == "fusion" else []
        if one.opcode in SLICES:
            return 2 * in_memory(one.type) if in_memory(types[one.operands[0]]) else 0
        if one.opcode == "dynamic-update-slice":
            return 2 * in_memory(types[one.operands[1]])
        written = in_memory(one.type)
        if one.opcode == "custom-call":  # its workspace, bytes, is not traffic
            written = in_memory(re.sub(r"\b[su]8\[", "token[", one.type))
        read = 0
        for place, operand in enumerate(one.operands):
            whole = in_memory(types[operand])
            read += min(whole, _read_in(body, place, whole)) if body else whole
        in_place = {i.name: i for i in body if i.opcode == "dynamic-update-slice"}
        for update in in_place.values():  # writes its update alone, and reads nothing of the rest
            sizes = {i.name: sum(size for size, _ in arrays(i.type)) for i in body}
            written -= sizes[update.name] - sizes[update.operands[1]]
        return max(written, 0) + read

    return part(entry)


def _read_in(body: list[Instruction], place: int, whole: int) -> int:
    """What a fused computation reads of its parameter number `place`."""
    names = [i.name for i in body if i.opcode == "parameter" and i.inputs == str(place)]
    read = 0
    for use in body:
        operands = use.operands
        if names[0] not in operands:
            continue
        if use.opcode in SLICES and operands[0] == names[0]:
            read += sum(size for size, _ in arrays(use.type))
        elif use.opcode != "dynamic-update-slice" or operands[0] != names[0]:
            return whole
    return read


def facts(compiled: Any) -> Part:
    """What a compiled program of JAX moves and runs."""
    return program(compiled.as_text())
