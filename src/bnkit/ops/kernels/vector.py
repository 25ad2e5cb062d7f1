"""Vectors of 64 bytes as values of a compiled loop.

Numba leaves it to the compiler whether a loop becomes vector code, and planes of 49 values or sums
that must be flushed to double precision now and then do not. With these types a loop says what
it wants: `load` and `store` take the array and the index of the first value, `..._part` leave out
what lies beyond `left` values. The machine code is that of the widest vectors of the processor;
narrower ones take two or four for one of ours.

Arrays of 16-bit values are widened to float32 by `load` and rounded to nearest even by `store`:
`numpy.int16` stands for float16, which Numba's arrays do not know, and `numpy.uint16` for bfloat16.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, overload, register_model

_BYTES = 64
_FLAGS = ("contract", "nsz")
_INT16, _INT32, _INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOATS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
_WIDE = {types.int16: types.float32, types.uint16: types.float32}
_STORED = {types.int16: ir.HalfType(), types.uint16: _INT16} | _FLOATS
_QUIET_NAN = 0x7FC0


def _instruction(function: Callable) -> Any:
    """`numba.extending.intrinsic`; what it makes takes one argument less than Python sees."""
    return intrinsic(function)


class Vector(types.Type):
    """Numba's type of a vector.

    Args:
        dtype: float32 or float64.
        lanes: How many values; by default, what 64 bytes hold.
    """

    def __init__(self, dtype: Any, lanes: int | None = None) -> None:
        self.dtype = dtype
        self.lanes = lanes or _BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"vector({dtype} x {self.lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, _llvm(kind))


def _llvm(kind: Vector) -> ir.VectorType:
    return ir.VectorType(_FLOATS[kind.dtype], kind.lanes)


def _vector_of(array: Any) -> Vector:
    """The type of what is loaded from an array."""
    return Vector(_WIDE.get(array.dtype, array.dtype))


def _constant(element: Any, lanes: int, value: Any) -> ir.Constant:
    kind = ir.VectorType(element, lanes)
    return ir.Constant(kind, [ir.Constant(element, value)] * lanes)


def _spread(builder: Any, value: Any, lanes: int) -> Any:
    kind = ir.VectorType(value.type, lanes)
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, nothing, _constant(_INT32, lanes, 0))


def _mask(builder: Any, left: Any, lanes: int) -> Any:
    numbers = ir.Constant(ir.VectorType(_INT32, lanes), list(range(lanes)))
    limit = _spread(builder, builder.trunc(left, _INT32), lanes)
    return builder.icmp_signed("<", numbers, limit)


def _place(context: Any, builder: Any, array: tuple, index: Any) -> tuple[Any, ir.VectorType, int]:
    """Pointer to the vector at an index, its type in memory, and its alignment."""
    kind, value = array
    data = context.make_array(kind)(context, builder, value).data
    stored = ir.VectorType(_STORED[kind.dtype], _vector_of(kind).lanes)
    pointer = builder.gep(data, [index])
    return builder.bitcast(pointer, stored.as_pointer()), stored, kind.dtype.bitwidth // 8


def _widened(builder: Any, dtype: Any, value: Any) -> Any:
    lanes = value.type.count
    if dtype == types.int16:
        return builder.fpext(value, ir.VectorType(ir.FloatType(), lanes))
    if dtype == types.uint16:
        bits = builder.zext(value, ir.VectorType(_INT32, lanes))
        high = builder.shl(bits, _constant(_INT32, lanes, 16))
        return builder.bitcast(high, ir.VectorType(ir.FloatType(), lanes))
    return value


def _narrowed(builder: Any, dtype: Any, value: Any) -> Any:
    lanes = value.type.count
    if dtype == types.int16:
        return builder.fptrunc(value, ir.VectorType(ir.HalfType(), lanes))
    if dtype != types.uint16:
        return value
    bits = builder.bitcast(value, ir.VectorType(_INT32, lanes))
    sixteen, one = _constant(_INT32, lanes, 16), _constant(_INT32, lanes, 1)
    odd = builder.and_(builder.lshr(bits, sixteen), one)
    half = builder.add(odd, _constant(_INT32, lanes, 0x7FFF))
    rounded = builder.lshr(builder.add(bits, half), sixteen)
    nan = builder.fcmp_unordered("uno", value, value)
    kept = builder.select(nan, _constant(_INT32, lanes, _QUIET_NAN), rounded)
    return builder.trunc(kept, ir.VectorType(_INT16, lanes))


def _in_double(builder: Any, value: Any) -> Any:
    kind = ir.VectorType(ir.DoubleType(), value.type.count)
    return value if value.type == kind else builder.fpext(value, kind)


def _suffix(kind: ir.VectorType) -> str:
    letters = {ir.FloatType(): "f32", ir.DoubleType(): "f64", ir.HalfType(): "f16", _INT16: "i16"}
    return f"v{kind.count}{letters[kind.element]}"


def _call(builder: Any, name: str, result: Any, arguments: list, flags: tuple = ()) -> Any:
    kind = ir.FunctionType(result, [a.type for a in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, arguments, fastmath=flags)


@_instruction
def load(typing_context: Any, array: Any, index: Any) -> Any:  # noqa: ARG001  Numba's form
    """The vector that begins at an index."""
    kind = _vector_of(array)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
        pointer, _, align = _place(context, builder, (array, given[0]), given[1])
        return _widened(builder, array.dtype, builder.load(pointer, align=align))

    return kind(array, types.int64), generate


@_instruction
def load_part(typing_context: Any, array: Any, index: Any, left: Any) -> Any:  # noqa: ARG001
    """As `load`; zeros in place of what lies beyond `left` values, which is not touched."""
    kind = _vector_of(array)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
        pointer, stored, align = _place(context, builder, (array, given[0]), given[1])
        mask = _mask(builder, given[2], kind.lanes)
        rest = [pointer, ir.Constant(_INT32, align), mask, ir.Constant(stored, None)]
        value = _call(builder, f"llvm.masked.load.{_suffix(stored)}.p0", stored, rest)
        return _widened(builder, array.dtype, value)

    return kind(array, types.int64, types.int64), generate


@_instruction
def store(typing_context: Any, array: Any, index: Any, value: Any) -> Any:  # noqa: ARG001
    """Write a vector from an index on."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
        pointer, _, align = _place(context, builder, (array, given[0]), given[1])
        builder.store(_narrowed(builder, array.dtype, given[2]), pointer, align=align)
        return context.get_dummy_value()

    return types.void(array, types.int64, value), generate


@_instruction
def store_part(typing_context: Any, array: Any, index: Any, value: Any, left: Any) -> Any:  # noqa: ARG001
    """As `store`, of the first `left` values only."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
        pointer, stored, align = _place(context, builder, (array, given[0]), given[1])
        mask = _mask(builder, given[3], stored.count)
        narrow = _narrowed(builder, array.dtype, given[2])
        rest = [narrow, pointer, ir.Constant(_INT32, align), mask]
        _call(builder, f"llvm.masked.store.{_suffix(stored)}.p0", ir.VoidType(), rest)
        return context.get_dummy_value()

    return types.void(array, types.int64, value, types.int64), generate


@_instruction
def accumulate(typing_context: Any, array: Any, index: Any, value: Any) -> Any:  # noqa: ARG001
    """Add a vector to the values of a float64 array from an index on."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
        wide = _llvm(Vector(types.float64, value.lanes))
        data = context.make_array(array)(context, builder, given[0]).data
        pointer = builder.bitcast(builder.gep(data, [given[1]]), wide.as_pointer())
        term = _in_double(builder, given[2])
        size = array.dtype.bitwidth // 8
        total = builder.fadd(builder.load(pointer, align=size), term)
        builder.store(total, pointer, align=size)
        return context.get_dummy_value()

    return types.void(array, types.int64, value), generate


@_instruction
def widen(typing_context: Any, value: Any) -> Any:  # noqa: ARG001
    """The same values in float64."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
        return _in_double(builder, given[0])

    return Vector(types.float64, value.lanes)(value), generate


@_instruction
def keep(typing_context: Any, value: Any, left: Any) -> Any:  # noqa: ARG001
    """Zeros beyond the first `left` values."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
        kind = given[0].type
        return builder.select(_mask(builder, given[1], kind.count), given[0], kind(None))

    return value(value, types.int64), generate


@_instruction
def spread(typing_context: Any, value: Any) -> Any:  # noqa: ARG001
    """A vector of one value."""
    kind = Vector(value)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
        return _spread(builder, given[0], kind.lanes)

    return kind(value), generate


@_instruction
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:  # noqa: ARG001
    """`a * b + c`, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
        kind = given[0].type
        return _call(builder, f"llvm.fma.{_suffix(kind)}", kind, list(given))

    return a(a, a, a), generate


@_instruction
def floor(typing_context: Any, a: Any) -> Any:  # noqa: ARG001
    """The next whole number below."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
        kind = given[0].type
        return _call(builder, f"llvm.floor.{_suffix(kind)}", kind, list(given))

    return a(a), generate


@_instruction
def total(typing_context: Any, a: Any) -> Any:  # noqa: ARG001
    """The sum of the values of a vector, in float64."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
        wide, double = _in_double(builder, given[0]), ir.DoubleType()
        name = f"llvm.vector.reduce.fadd.{_suffix(wide.type)}"
        return _call(builder, name, double, [double(0.0), wide], ("reassoc",))

    return types.float64(a), generate


@_instruction
def where_less(typing_context: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:  # noqa: ARG001
    """`yes` where a < b, `no` elsewhere and where either is NaN."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
        less = builder.fcmp_ordered("<", given[0], given[1])
        return builder.select(less, given[2], given[3])

    return yes(a, a, yes, yes), generate


@_instruction
def power_of_two(typing_context: Any, a: Any) -> Any:  # noqa: ARG001
    """`2**a` for whole numbers a within the range of normal exponents."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
        kind = given[0].type
        narrow = kind.element == ir.FloatType()
        whole, bias, shift = (_INT32, 127, 23) if narrow else (_INT64, 1023, 52)
        exponent = builder.fptosi(given[0], ir.VectorType(whole, kind.count))
        biased = builder.add(exponent, _constant(whole, kind.count, bias))
        return builder.bitcast(builder.shl(biased, _constant(whole, kind.count, shift)), kind)

    return a(a), generate


def _arithmetic(instruction: str, *operators: Callable) -> None:
    """Make Python's operators mean an instruction between two vectors."""

    @_instruction
    def operation(typing_context: Any, a: Any, b: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
            return getattr(builder, instruction)(given[0], given[1], flags=_FLAGS)

        return a(a, b), generate

    def run(a: Any, b: Any) -> Any:
        return operation(a, b)

    def between_vectors(a: Any, b: Any) -> Callable | None:
        return run if isinstance(a, Vector) and isinstance(b, Vector) else None

    for python in operators:
        overload(python, inline="always")(between_vectors)


_arithmetic("fadd", operator.add, operator.iadd)
_arithmetic("fsub", operator.sub, operator.isub)
_arithmetic("fmul", operator.mul, operator.imul)
_arithmetic("fdiv", operator.truediv)


@_instruction
def lanes(typing_context: Any, array: Any) -> Any:  # noqa: ARG001
    """How many values of an array a vector holds."""
    count = _vector_of(array).lanes

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
        return ir.Constant(_INT64, count)

    return types.int64(array), generate


@_instruction
def number(typing_context: Any, array: Any, value: Any) -> Any:  # noqa: ARG001
    """A number in the precision in which the values of an array are computed."""
    kind = _vector_of(array).dtype

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
        return context.cast(builder, given[1], value, kind)

    return kind(array, value), generate
