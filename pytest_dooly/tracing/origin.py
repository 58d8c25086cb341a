"""Symbols of configuration and request, and how PyTorch carries them through a forward pass.

A configuration integer becomes an `Origin`: an int that remembers the expression it came from. The engine's own
constructors compute with it. At the torch boundary it turns into a SymInt of an `OriginShapeEnv`, and fake tensors
carry the expression through every operator's own shape function: no propagation rule is written by hand, and no
integer is looked up by its value.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils._sympy.functions import FloorDiv as TorchFloorDiv
from torch.utils._sympy.functions import PythonMod

from pytest_dooly.core.operation import FloorDiv

__all__ = ["Origin", "OriginFloat", "OriginInteger", "OriginShapeEnv", "OriginsToSymInts", "Symbols"]


class OriginShapeEnv(ShapeEnv):
    """A ShapeEnv that answers every question from the symbols' values and records no guard.

    A guard may replace a symbol by its number, which is sound for a compiler but loses the name that we are after.
    Whether a branch depended on a value is the oracle's to find: it traces again at other values and compares.
    """

    def evaluate_expr(
        self,
        orig_expr: sympy.Basic,
        hint: Any = None,
        fx_node: Any = None,
        size_oblivious: bool = False,
        fallback_value: bool | None = None,
        *,
        forcing_spec: bool = False,
    ) -> sympy.Basic:
        """The expression's value."""
        value = orig_expr.xreplace(self.backed_var_to_val)
        return value if value.is_number or value in (sympy.true, sympy.false) else sympy.sympify(hint)

    def guard_or_defer_runtime_assert(self, orig_expr: Any, msg: str, fx_node: Any = None) -> bool:
        """The expression's value; nothing is deferred, since every symbol has one."""
        return bool(self.evaluate_expr(orig_expr))


class Symbols:
    """Named symbols with values, in one shape environment.

    Attributes:
        shape_env: the environment that fake tensors of this trace share.
        values: value of every configuration symbol.
        integer: stands in for `int` where that would forget an origin.
    """

    integer: type[int]

    def __init__(self) -> None:
        self.shape_env = OriginShapeEnv(specialize_zero_one=False, duck_shape=False)
        self.values: dict[str, int] = {}
        self._names: dict[sympy.Symbol, sympy.Symbol] = {}
        # The cache of a fake mode costs more than it saves here: every symbolic size of a hit is checked again.
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
            self._fake = FakeTensorMode(shape_env=self.shape_env, allow_non_fake_inputs=True)

    @contextmanager
    def building(self) -> Iterator[None]:
        """The modes under which constructors and the forward pass run."""
        with self._fake, OriginsToSymInts():
            yield

    def request(self, name: str, value: int) -> torch.SymInt:
        """A new request symbol as a SymInt that counts as `value` wherever the engine must decide."""
        source = ConstantSource(name)
        return self.shape_env.create_symintnode(self._create(name, value, source), hint=value, source=source)

    def plant(self, name: str, value: int) -> Origin:
        """A new configuration symbol as an int that remembers it.

        The same name with the same value is the same symbol; with another value it is numbered.
        """
        unique, number = name, 2
        while unique in self.values and self.values[unique] != value:
            unique, number = f"{name}_{number}", number + 1
        known = {str(named): symbol for symbol, named in self._names.items()}
        symbol = known.get(unique)
        if symbol is None:
            self.values[unique] = value
            symbol = self._create(unique, value, ConstantSource(unique))
        return Origin(value, symbol, self)

    def expression(self, dimension: int | torch.SymInt) -> sympy.Expr:
        """The origin of a dimension in terms of the symbols' names."""
        if isinstance(dimension, Origin):
            return self._named(dimension.expression)
        if isinstance(dimension, torch.SymInt):
            return self._named(dimension.node.expr)
        return sympy.Integer(dimension)

    def to_symint(self, origin: Origin) -> torch.SymInt:
        """The SymInt that stands for an Origin inside of torch."""
        return self.shape_env.create_symintnode(origin.expression, hint=int(origin))

    def _create(self, name: str, value: int, source: ConstantSource) -> sympy.Symbol:
        symbol = self.shape_env.create_symbol(value, source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
        self._names[symbol] = sympy.Symbol(name, integer=True, positive=True)
        return symbol

    def _named(self, expression: sympy.Expr) -> sympy.Expr:
        return expression.xreplace(self._names).replace(TorchFloorDiv, FloorDiv)


class Origin(int):
    """An integer of the model configuration that remembers the expression it came from.

    Attributes:
        expression: in the symbols of `symbols.shape_env`.
        symbols: where the expression's symbols live.
    """

    expression: sympy.Expr
    symbols: Symbols

    def __new__(cls, value: int, expression: sympy.Expr, symbols: Symbols) -> Self:
        """An int equal to `value` in every other respect."""
        self = int.__new__(cls, value)
        self.expression = expression
        self.symbols = symbols
        return self

    # A copy in another process or a JSON document is the plain number.
    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Mapping[int, Any]) -> Self:
        return self

    # What rounds up divides by a negative number: -(-a // b).
    def __neg__(self) -> Self:
        return type(self)(-int(self), -self.expression, self.symbols)

    def __pos__(self) -> Self:
        return self

    def __truediv__(self, other: Any) -> Any:
        value = int(self) / other
        return _part(self, value, operator.truediv, other) if isinstance(value, float) else value


class OriginFloat(float):
    """A float computed from an Origin: a part of a size, before it is rounded.

    Attributes:
        expression: in the symbols of `symbols.shape_env`.
        symbols: where the expression's symbols live.
    """

    expression: sympy.Expr
    symbols: Symbols

    def __new__(cls, value: float, expression: sympy.Expr, symbols: Symbols) -> Self:
        """A float equal to `value` in every other respect."""
        self = float.__new__(cls, value)
        self.expression = expression
        self.symbols = symbols
        return self

    def __reduce__(self) -> tuple[type[float], tuple[float]]:
        return float, (float(self),)


class _RemembersOrigins(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, int)

    def __call__(cls, value: Any = 0, *args: Any) -> int:
        if isinstance(value, Origin):
            return value
        if isinstance(value, OriginFloat):
            numerator, denominator = sympy.fraction(sympy.together(value.expression))
            return Origin(int(value), TorchFloorDiv(numerator, denominator), value.symbols)
        return int(value, *args)


class OriginInteger(int, metaclass=_RemembersOrigins):
    """The type `int`, but for calls: those keep the origin of what they round down."""


Symbols.integer = OriginInteger


def _arithmetic(name: str, build: Callable[[Any, Any], sympy.Expr], *, swapped: bool) -> Callable[[Any, Any], Any]:
    compute = getattr(int, f"__{'r' if swapped else ''}{name}__")
    symbolic = getattr(operator, name)

    def method(self: Origin, other: Any) -> Any:
        if isinstance(other, torch.SymInt):
            mine = self.symbols.to_symint(self)
            return symbolic(other, mine) if swapped else symbolic(mine, other)
        if type(other) is float and name == "mul":
            return _part(self, int(self) * other, operator.mul, other)
        value = compute(self, other)
        if value is NotImplemented or isinstance(other, bool) or not isinstance(other, int):
            return value
        theirs = other.expression if isinstance(other, Origin) else sympy.Integer(other)
        left, right = (theirs, self.expression) if swapped else (self.expression, theirs)
        return Origin(value, build(left, right), self.symbols)

    return method


def _part(origin: Origin, value: float, build: Callable[[Any, Any], sympy.Expr], factor: float) -> float:
    """A float computed from an Origin and a number, as written in decimal."""
    if not math.isfinite(factor):
        return value
    number = factor.expression if isinstance(factor, Origin) else sympy.Rational(str(factor))
    return OriginFloat(value, build(origin.expression, number), origin.symbols)


def _comparison(name: str) -> Callable[[Any, Any], Any]:
    compare = getattr(int, f"__{name}__")

    def method(self: Origin, other: Any) -> Any:
        # A symbol counts as its value, as everywhere that the engine decides by one.
        return compare(self, int(other) if isinstance(other, torch.SymInt) else other)

    return method


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Origin, f"__{_name}__", _comparison(_name))
Origin.__hash__ = int.__hash__  # type: ignore[method-assign]

for _name, _build in {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": TorchFloorDiv,
    "mod": PythonMod,
}.items():
    setattr(Origin, f"__{_name}__", _arithmetic(_name, _build, swapped=False))
    setattr(Origin, f"__r{_name}__", _arithmetic(_name, _build, swapped=True))


class OriginsToSymInts(TorchFunctionMode):
    """Hands every torch function the SymInt of an Origin, so that its result carries the origin."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls the function with SymInts in place of Origins."""
        return func(*tree_map(_symint, args), **tree_map(_symint, dict(kwargs or {})))


def _symint(value: Any) -> Any:
    if isinstance(value, slice):
        return slice(_symint(value.start), _symint(value.stop), _symint(value.step))
    return value.symbols.to_symint(value) if isinstance(value, Origin) else value
