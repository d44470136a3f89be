"""How much work code does, in units that no machine's speed changes.

`counted` runs a copy of a module in which every statement adds one to a count, and every
operation on text adds the text that it may have to touch: a call of a built-in method, a slice, a
concatenation, a test with ``in``. So does what one statement does inside C. An operation whose
cost is not known here is an error, not nothing.

A regular expression's cost is taken as the length of what it is given. Whether that is so is
another question, which `match_steps` answers: it matches as Python's `re` does, by backtracking,
and counts the steps.
"""

from __future__ import annotations

import ast
import codecs
import copy
import functools
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, Final

if sys.version_info >= (3, 11):
    import re._constants as rec
    import re._parser as rep
else:
    import sre_constants as rec
    import sre_parse as rep

_FILE: Final = "<counted>"
_CONSTANT: Final = {"isascii"}
"""Methods of text whose cost does not depend on its size."""
_CONSTANT_FUNCTIONS: Final = {len, isinstance, range, min, max, memoryview}
_CONSTANT_HELPERS: Final = {"unchecked_event"}
"""Functions of other modules: they store references."""


class Work:
    """The count, and what counted code calls to add to it."""

    def __init__(self) -> None:
        self.total = 0

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        owner = getattr(function, "__self__", None)
        if isinstance(owner, list) and function.__name__ == "clear":
            self.total += len(owner)
        result = function(*args, **kwargs)
        self.total += self._cost(function, owner, args, result)
        return result

    def made(self, value: Any) -> Any:
        self.total += _size(value)
        return value

    def contains(self, needle: Any, haystack: Any) -> bool:
        self.total += _size(haystack)
        return needle in haystack

    @staticmethod
    def _cost(function: Any, owner: Any, args: tuple[Any, ...], result: Any) -> int:
        if function is int:
            return _size(args) ** 2
        if function is bytes or isinstance(owner, str | bytes):
            return 0 if function.__name__ in _CONSTANT else _size([owner, *args, result])
        if function is codecs.utf_8_decode or isinstance(owner, re.Pattern):
            return _size(args)
        assert _is_constant(function, owner), f"what does {function!r} cost?"
        return 0


def _is_constant(function: Any, owner: Any) -> bool:
    if isinstance(function, types.FunctionType | types.MethodType):
        is_counted_itself = function.__code__.co_filename == _FILE
        return is_counted_itself or function.__name__ in _CONSTANT_HELPERS
    if isinstance(function, type) and issubclass(function, Exception):
        return True
    if isinstance(owner, list):
        return function.__name__ in {"append", "clear"}
    return function in _CONSTANT_FUNCTIONS


def _size(value: object) -> int:
    if isinstance(value, str | bytes | bytearray | memoryview):
        return len(value)
    if isinstance(value, list | tuple):
        return len(value) + sum(map(_size, value))
    return 0


def counted(source: str, names: dict[str, Any], work: Work) -> dict[str, Any]:
    """What ``source`` defines, run among ``names``, such that all it does is added to ``work``."""
    namespace = {**names, "__work__": work}
    exec(_counting_code(source), namespace)
    return namespace


@functools.lru_cache(maxsize=1)
def _counting_code(source: str) -> types.CodeType:
    tree = ast.fix_missing_locations(_Counting().visit(ast.parse(source)))
    return compile(tree, _FILE, "exec", dont_inherit=True)


class _Counting(ast.NodeTransformer):
    def visit_Module(self, node: ast.Module) -> ast.Module:
        node.body = [
            self.visit(each) if isinstance(each, ast.FunctionDef | ast.ClassDef) else each
            for each in node.body
        ]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        if not node.bases:  # exceptions need their super()
            node.body = [
                self.visit(each) if isinstance(each, ast.FunctionDef) else each
                for each in node.body
            ]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.body = self._counting(node.body)
        return node

    def visit_For(self, node: ast.For) -> ast.For:
        node.iter = self.visit(node.iter)
        node.body = self._counting(node.body)
        return node

    def visit_While(self, node: ast.While) -> ast.While:
        node.test = self.visit(node.test)
        node.body = self._counting(node.body)
        return node

    def visit_If(self, node: ast.If) -> ast.If:
        node.test = self.visit(node.test)
        node.body = self._counting(node.body)
        node.orelse = self._counting(node.orelse)
        return node

    def _counting(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        (tick,) = ast.parse("__work__.total += 1").body
        return [each for statement in statements for each in (tick, self.visit(statement))]

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        return _work("call", node.func, *node.args, keywords=node.keywords)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        return _work("made", node) if isinstance(node.slice, ast.Slice) else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        return _work("made", node)

    def visit_List(self, node: ast.List) -> ast.expr:
        self.generic_visit(node)
        return _work("made", node) if isinstance(node.ctx, ast.Load) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        for value in node.values:
            if isinstance(value, ast.FormattedValue):
                value.value = self.visit(value.value)
        return _work("made", node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        load = copy.deepcopy(node.target)
        load.ctx = ast.Load()
        return ast.Assign([node.target], self.visit(ast.BinOp(load, node.op, node.value)))

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        (right,) = node.comparators[-1:]
        match node.ops:
            case [ast.In()]:
                return _work("contains", node.left, right)
            case [ast.NotIn()]:
                return ast.UnaryOp(ast.Not(), _work("contains", node.left, right))
        return node


def _work(method: str, *args: ast.expr, keywords: list[ast.keyword] | None = None) -> ast.Call:
    function = ast.Attribute(ast.Name("__work__", ast.Load()), method, ast.Load())
    return ast.Call(function, list(args), keywords or [])


def match_steps(pattern: re.Pattern[str], text: str) -> tuple[list[tuple[int, int]], int]:
    """The spans of ``pattern.finditer(text)``, and how many steps it takes to find them.

    A step is one look at one part of the pattern at one place of the text. Python's matcher may
    skip some; it takes no others.
    """
    matcher = _Matcher(pattern, text)
    spans = []
    position = 0
    while position <= len(text):
        end = next(matcher.ends(matcher.parts, position), None)
        if end is None:
            position += 1
        else:
            spans.append((position, end))
            position = max(end, position + 1)
    return spans, matcher.steps


class _Matcher:
    def __init__(self, pattern: re.Pattern[str], text: str) -> None:
        self.text = text
        self.steps = 0
        self.parts = list(rep.parse(pattern.pattern, pattern.flags))

    def ends(self, parts: list[Any], position: int) -> Iterator[int]:
        """Where a match of ``parts`` at ``position`` may end, in the order of trying."""
        if not parts:
            yield position
            return
        self.steps += 1
        part, rest = parts[0], parts[1:]
        for end in self._part_ends(part, position):
            yield from self.ends(rest, end)

    def _part_ends(self, part: tuple[Any, Any], position: int) -> Iterator[int]:
        operation, argument = part
        if operation is rec.SUBPATTERN:
            yield from self.ends(list(argument[3]), position)
        elif operation is rec.BRANCH:
            for alternative in argument[1]:
                yield from self.ends(list(alternative), position)
        elif operation is rec.ASSERT_NOT:
            if next(self.ends(list(argument[1]), position), None) is None:
                yield position
        elif operation is rec.MAX_REPEAT:
            low, high, repeated = argument
            yield from self._repeat_ends(low, high, list(repeated), position)
        elif position < len(self.text) and self._is_matched(part, ord(self.text[position])):
            yield position + 1

    def _repeat_ends(self, low: int, high: int, parts: list[Any], start: int) -> Iterator[int]:
        """Once more as long as that can be; then, going back, every other way."""
        ends = [start]
        ways = [self.ends(parts, start)]
        while ways:
            end = next(ways[-1], None) if len(ways) <= high else None
            if end is not None and end > ends[-1]:
                ends.append(end)
                ways.append(self.ends(parts, end))
            else:
                ways.pop()
                position = ends.pop()
                if len(ends) >= low:
                    yield position

    @staticmethod
    def _is_matched(part: tuple[Any, Any], character: int) -> bool:
        operation, argument = part
        if operation is rec.LITERAL:
            return bool(character == argument)
        if operation is rec.NOT_LITERAL:
            return bool(character != argument)
        assert operation is rec.IN, f"{operation} is more than a simple expression needs"
        negated = argument[0][0] is rec.NEGATE
        ranges = [
            (what, what) if kind is rec.LITERAL else what
            for kind, what in argument[1 if negated else 0 :]
        ]
        return negated != any(low <= character <= high for low, high in ranges)
