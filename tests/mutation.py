"""Small changes of the library's source, found on its syntax tree, and a draw of some."""

import ast
import contextlib
import hashlib
import random
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "amac_jax"
PLACES = ["_core", "kernels.py", "optimizers", "schedules", "state.py", "techniques", "wrappers"]
OPERATORS = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.Pow: ("**", "*"), ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "//"), ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"), ast.BitXor: ("^", "&"), ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"), ast.MatMult: ("@", "*"), ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"), ast.And: ("and", "or"), ast.Or: ("or", "and"),
}  # fmt: skip
# A negated comparison of these is the comparison's own change.
COMPLEMENTED = ast.Not | ast.Eq | ast.NotEq | ast.Is | ast.IsNot | ast.In | ast.NotIn
ATOMS = ast.Name | ast.Call | ast.Attribute | ast.Subscript | ast.Constant | ast.List | ast.Dict
TYPES = {"int", "float", "bool", "str", "bytes", "tuple", "list", "dict", "number", "ndarray"}
LOOKUPS = {"get", "pop", "setdefault", "getattr", "hasattr"}

Mutant = dict[str, Any]
# The kind, the node, and what it becomes, or what the bytes from, to become.
Edit = tuple[str, Any, bytes] | tuple[str, Any, bytes, int, int]


def parsed(source: bytes) -> ast.Module:
    """The syntax tree; every node knows the bytes where it starts and ends, and its text."""
    tree, lines = ast.parse(source), [0, *accumulate(map(len, source.splitlines(keepends=True)))]
    for node in ast.walk(tree):
        if hasattr(node, "lineno"):
            node.start = lines[node.lineno - 1] + node.col_offset
            node.end = lines[node.end_lineno - 1] + node.end_col_offset
            node.text = source[node.start : node.end]
    return tree


def name_of(node: Any) -> str:
    """The last name of `a.b.c`, or nothing."""
    return getattr(node, "attr", getattr(node, "id", ""))


def is_ignored(node: ast.AST) -> bool:
    """Whether nothing in a node is to change: imports, docstrings, types, formatted strings."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.JoinedStr() | ast.Expr(value=ast.Constant()):
            return True
        case ast.AnnAssign(annotation=ast.Name(id="TypeAlias")):
            return True
        case ast.Assign(targets=[ast.Name(id=name), *_], value=ast.Subscript() | ast.BinOp()):
            return bool(re.fullmatch(r"_?[A-Z]\w*[a-z]\w*", name))
        case ast.Assign(targets=[ast.Name(id=name), *_], value=value):
            function = name_of(getattr(value, "func", None))
            return name == "__all__" or function in ("TypeVar", "ParamSpec")
    return False


def parts_of(node: ast.AST) -> Iterable[ast.AST]:
    """The nodes in a node, without annotations and the words of errors."""
    match node:
        case ast.Raise():
            return []
        case ast.AnnAssign(target=target, value=value):
            return filter(None, [target, value])
        case ast.FunctionDef(args=args):
            defaults = filter(None, [*args.defaults, *args.kw_defaults])
            return [*node.decorator_list, *defaults, *node.body]
        case ast.ClassDef():
            return [*node.decorator_list, *(word.value for word in node.keywords), *node.body]
    return ast.iter_child_nodes(node)


def walk(node: Any, lines: list[int], where: str) -> Iterator[tuple[ast.AST, list[int], str]]:
    """A node and those in it, with the lines of their statement's header and their function."""
    if is_ignored(node):
        return
    if isinstance(node, ast.stmt):
        first = min(part.lineno for part in [node, *getattr(node, "decorator_list", [])])
        body, last = getattr(node, "body", None), node.end_lineno or first
        lines = [first, max(node.lineno, body[0].lineno - 1) if body else last]
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        where = f"{where}.{node.name}".strip(".")
    yield node, lines, where or "module"
    for part in parts_of(node):
        yield from walk(part, lines, where)


def edits(source: bytes, node: Any) -> Iterator[Edit]:
    """The changes of a node itself; its parts have changes of their own."""
    match node:
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Assert() | ast.Delete():
            yield "statement", node, b"pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]):
            yield "statement", node, b"pass"
        case ast.AugAssign():
            yield "statement", node, b"pass"
            before, after = (text.encode() for text in OPERATORS[type(node.op)])
            start = source.find(before + b"=", node.target.end)
            yield "arithmetic", node, after, start, start + len(before)
        case ast.Return(value=ast.Tuple(elts=[*_, first, second])):
            yield from swapped("return", source, first, second)
        case ast.BinOp() if not joins_text_or_types(node):
            new = joined(source, node, [node.left, node.right])
            plain = isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div)
            yield "arithmetic", node, new if plain else b"(%s)" % new
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield "unary", node, bracketed(node.operand)
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            yield "comparison", node, gap(source, left, right, op), left.end, right.start
        case ast.BoolOp() if b"#" not in node.text:
            yield "boolean", node, b"(%s)" % joined(source, node, node.values)
        case ast.Constant(value=bool(value)):
            yield "flag", node, str(not value).encode()
        case ast.Constant(value=int(value)):
            form = hex if node.text.lower().startswith(b"0x") else str
            yield "number", node, form(value + 1).encode()
        case ast.Constant(value=float(value)):
            yield "number", node, repr(2 * value if value else 1.0).encode()
        case ast.IfExp():
            parts = (bracketed(part) for part in (node.orelse, node.test, node.body))
            yield "ternary", node, b"%s if %s else %s" % tuple(parts)
        case ast.Call():
            yield from call_edits(source, node)
    branches = isinstance(node, ast.If | ast.While | ast.IfExp)
    for test in [node.test] if branches else getattr(node, "ifs", []):
        if not isinstance(getattr(test, "ops", [getattr(test, "op", None)])[0], COMPLEMENTED):
            yield "condition", test, b"(not (%s))" % test.text
    for key in keys(node):
        if isinstance(getattr(key, "value", None), str):
            yield "key", key, repr(f"{key.value}_").encode()


def bracketed(node: Any) -> bytes:
    """The text of an expression, in brackets unless it needs none anywhere."""
    return node.text if isinstance(node, ATOMS) else b"(%s)" % node.text


def gap(source: bytes, left: Any, right: Any, operator: Any) -> bytes:
    """The text between two nodes, with another operator."""
    old, new = OPERATORS[type(operator)]
    pattern = r"\s+".join(map(re.escape, old.split()))
    return re.sub(pattern, new, source[left.end : right.start].decode(), count=1).encode()


def joined(source: bytes, node: Any, parts: list[Any]) -> bytes:
    """The text of a node with another operator between its parts."""
    text = source[node.start : parts[0].end]
    for left, right in pairwise(parts):
        text += gap(source, left, right, node.op) + right.text
    return text + source[parts[-1].end : node.end]


def joins_text_or_types(node: ast.BinOp) -> bool:
    """Whether an operation concerns strings or is a union of types."""
    names = [name_of(part) for part in ast.walk(node)]
    types = any(name in TYPES or name[:1].isupper() for name in names)
    text = any(side.text.endswith((b'"', b"'")) for side in (node.left, node.right))
    return text or (types and isinstance(node.op, ast.BitOr))


def keys(node: ast.AST) -> list[Any]:
    """What is looked up or compared, unlike the strings that are shown."""
    match node:
        case ast.Subscript(slice=key):
            return [key]
        case ast.Compare(left=left, comparators=[right]):
            return [left, right, *getattr(right, "elts", [])]
        case ast.Call(args=found) if name_of(node.func) in LOOKUPS:
            return found
    return getattr(node, "keys", [])  # of a dictionary


def swapped(kind: str, source: bytes, first: Any, second: Any) -> Iterator[Edit]:
    """Two neighbours change places; what is between them stays."""
    starred = isinstance(first, ast.Starred) or isinstance(second, ast.Starred)
    if not starred and ast.dump(first) != ast.dump(second):
        new = second.text + source[first.end : second.start] + first.text
        yield kind, first, new, first.start, second.end


def call_edits(source: bytes, node: Any) -> Iterator[Edit]:
    """A call loses a keyword, an argument, the order of two, or all but its argument."""
    for keyword in node.keywords:
        if keyword.arg:
            yield without(source, node, keyword)
    plain = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
    for argument in plain:
        if argument.text != b"None":
            yield "argument", argument, b"None"
    for first, second in pairwise(node.args):
        yield from swapped("order", source, first, second)
    if len(node.args) == len(plain) == 1 and not node.keywords:
        yield "call", node, bracketed(plain[0])


def without(source: bytes, node: Any, keyword: Any) -> Edit:
    """A call without one of its keyword arguments and the comma beside it."""
    arguments = sorted([*node.args, *node.keywords], key=lambda part: part.start)
    place, start, end = arguments.index(keyword), keyword.start, keyword.end
    if place + 1 < len(arguments):
        end = arguments[place + 1].start
    elif place:
        start = source.rfind(b",", arguments[place - 1].end, start)
    elif comma := re.compile(rb"\s*,").match(source, end):
        end = comma.end()
    return "keyword", keyword, b"", start, end


def entry(file: str, source: bytes, edit: Edit, statement: list[int], where: str) -> Mutant:
    """An edit as an entry; `lines` and `statement` are a first and a last line."""
    kind, node, new, start, end = edit if len(edit) == 5 else (*edit, edit[1].start, edit[1].end)
    first, last = source.rfind(b"\n", 0, start) + 1, source.index(b"\n", end)
    changed = [source[first:start] + text + source[end:last] for text in (source[start:end], new)]
    before, after = (" ".join(text.decode().split()) for text in changed)
    return {
        "id": "", "file": file, "line": source.count(b"\n", 0, start) + 1, "column": start - first,
        "kind": kind, "where": where, "before": before, "after": after, "start": start,
        "old": source[start:end].decode(), "new": new.decode(),
        "lines": [node.lineno, node.end_lineno], "statement": statement,
    }  # fmt: skip


def apply(mutant: Mutant, source: bytes) -> bytes:
    """The changed source."""
    old, start = mutant["old"].encode(), mutant["start"]
    if source[start : start + len(old)] != old:
        raise SystemExit(f"{mutant['file']} has changed since mutant {mutant['id']} was drawn.")
    return source[:start] + mutant["new"].encode() + source[start + len(old) :]


def by_hand(file: str, old: str, new: str) -> Mutant:
    """The change of a text that a file has once."""
    source, text = (ROOT / file).read_bytes(), old.encode()
    if source.count(text) != 1:
        raise SystemExit(f"{file} has {source.count(text)} times, not once: {old}")
    start, line = source.index(text), source.count(b"\n", 0, source.index(text)) + 1
    node = ast.Pass(lineno=line, end_lineno=line + old.count("\n"))
    edit = ("by hand", node, new.encode(), start, start + len(text))
    mutant = entry(file, source, edit, [line, line], "")
    return mutant | {"id": hashlib.sha256(f"{mutant}".encode()).hexdigest()[:10]}


def candidates(file: str) -> tuple[list[Mutant], int]:
    """All mutants of a file, some of which may not compile, and how many lines of code it has."""
    source, found, code, seen = (ROOT / file).read_bytes(), [], set(), Counter()
    for node, lines, where in walk(parsed(source), [1, 1], ""):
        code.update(range(lines[0], lines[1] + 1) if isinstance(node, ast.stmt) else ())
        found += [entry(file, source, edit, lines, where) for edit in edits(source, node)]
    for mutant in found:  # a name that edits elsewhere in the file do not change
        key = "|".join(mutant[name] for name in ("file", "where", "kind", "before", "after"))
        seen[key] += 1
        mutant["id"] = hashlib.sha256(f"{key}|{seen[key]}".encode()).hexdigest()[:10]
    return found, len(code)


def shares(sizes: dict[str, int], limits: dict[str, int], count: int) -> dict[str, int]:
    """How many of `count` each file gets: by its size, at least one, at most its limit."""
    given = {name: min(1, limits[name]) for name in sizes}
    for _ in range(min(count, sum(limits.values())) - sum(given.values())):
        unfilled = [name for name in sizes if given[name] < limits[name]]
        given[max(unfilled, key=lambda name: (sizes[name] / (given[name] + 0.5), name))] += 1
    return given


def drawn(file: str, found: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """Different mutants that compile, every kind as likely as the others, in the source's order."""
    rng, kinds, result = random.Random(f"{seed}:{file}"), defaultdict(list), []
    source = (ROOT / file).read_bytes()
    trees = {ast.dump(ast.parse(source))}
    for mutant in found:
        kinds[mutant["kind"]].append(mutant)
    while len(result) < count and any(kinds.values()):
        kind = rng.choice(sorted(kind for kind in kinds if kinds[kind]))
        mutant = kinds[kind].pop(rng.randrange(len(kinds[kind])))
        with contextlib.suppress(SyntaxError, ValueError):
            compile(changed := apply(mutant, source), "mutant", "exec")
            if (tree := ast.dump(ast.parse(changed))) not in trees:
                trees.add(tree)
                result.append(mutant)
    return sorted(result, key=lambda mutant: (mutant["start"], mutant["new"]))


def sample(count: int, seed: int) -> list[Mutant]:
    """Mutants of all files."""
    warnings.simplefilter("ignore", SyntaxWarning)
    places = [ROOT / PACKAGE / name for name in PLACES]
    paths = [path for place in places for path in (place, *place.rglob("*.py")) if path.is_file()]
    found = {f: candidates(f) for f in sorted(p.relative_to(ROOT).as_posix() for p in paths)}
    sizes = {file: size for file, (_, size) in found.items()}
    limits = {file: len(mutants) for file, (mutants, _) in found.items()}
    while True:
        given = shares(sizes, limits, count)
        chosen = {file: drawn(file, found[file][0], given[file], seed) for file in given}
        short = {file: len(some) for file, some in chosen.items() if len(some) < given[file]}
        if not short:
            return [mutant for some in chosen.values() for mutant in some]
        limits |= short
