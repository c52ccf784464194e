"""Filters as SQL: a condition that no matching row fails, and whether it is exact.

The conditions trust a table's columns and the plain keys of its JSON. Rows in which
a field that was used lies elsewhere (misfits, see mapping.py) are asked apart, by what
their remainder would hold if they matched, and the pure evaluator decides about them. So
"NULL means absent" holds here, and most conditions are exact.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from crossfade.document import INT64_MAX, INT64_MIN, NAME, FieldPath, Kind, Reference, kind
from crossfade.mapping import (
    ODD,
    BoolCodec,
    BytesCodec,
    Codec,
    DoubleCodec,
    FieldColumn,
    Int8Codec,
    IntArrayCodec,
    JsonCodec,
    TextCodec,
    TimeCodec,
    escape_path,
    is_odd,
    to_json,
)
from crossfade.query import RANGES, CompositeFilter, FieldFilter, Filter, Op, Order
from crossfade.stores.postgres.naming import literal
from crossfade.stores.postgres.rows import DocumentTable, quoted

EXACT_DOUBLE = 2**53
"""Up to here every integer is a double, so that both compare as PostgreSQL compares them."""


@dataclass(frozen=True, slots=True)
class Predicate:
    """A condition in SQL on rows whose fields lie where they should. `exact`: it holds for no
    such row that does not match.

    Of the other rows, none that matches fails `anywhere` (None: the same condition). One that
    has a field of `kept` in its remainder does not fail that condition either, which looks at
    nothing but the remainder. Both ask for plain keys.
    """

    sql: str
    exact: bool
    anywhere: str | None = None
    kept: Mapping[str, str] = field(default_factory=dict)

    @property
    def elsewhere(self) -> str:
        return self.sql if self.anywhere is None else self.anywhere


BESIDE = "crossfade.beside(t.remainder, t.misfits)"
"""What a row's remainder has of fields with columns; there is an index on it."""
ALL = Predicate("true", exact=True)
NONE = Predicate("false", exact=True)
ANY = Predicate("true", exact=False)


@dataclass
class Arguments:
    """The statement's parameters; `add` gives the placeholder."""

    values: list[Any] = field(default_factory=list)

    def add(self, value: Any, sql_type: str) -> str:
        self.values.append(value)
        return f"${len(self.values)}::{sql_type}"


class Compiler:
    """Compiles filters for one table. `used` collects what the conditions trust:
    columned fields by name, and ODD where plain JSON keys are asked."""

    def __init__(self, table: DocumentTable, arguments: Arguments) -> None:
        self._table = table
        self._arguments = arguments
        self._columns = {} if table.mapping is None else table.mapping.by_field
        self.used: set[str] = set()

    def filter(self, where: Filter | None) -> Predicate:
        if where is None:
            return ALL
        if isinstance(where, CompositeFilter):
            parts = [self.filter(inner) for inner in where.filters]
            return any_of(parts) if where.any_of else all_of(parts)
        if where.path == NAME:
            return self._name(where)
        column = self._columns.get(where.path[0])
        rest = f"t.{self._table.rest}"
        if column is None:
            self.used.add(ODD)
            return self._json(rest, where.path, where.path[1:], where)
        self.used.add(column.field)
        name = f"t.{quoted(column.column)}"
        plain = NONE
        if len(where.path) == 1:
            plain = _word(name, where, column.codec) or _COLUMNS[type(column.codec)](
                name, where, self._arguments
            )
        elif isinstance(column.codec, JsonCodec):
            plain = self._json(name, where.path[1:], where.path[1:], where)
        kept = self._json(BESIDE, where.path, where.path[1:], where)
        if kept == ANY and len(where.path) == 1 and where.op in RANGES:
            kept = _of_kind(f"({rest} -> {literal(where.path[0])})", where.value)
        anywhere = any_of([plain, kept]).sql
        return Predicate(plain.sql, plain.exact, anywhere, {column.field: kept.sql})

    def present(self, orders: Iterable[Order]) -> Predicate:
        """That a row has every field the result is ordered by."""
        parts = []
        for order in orders:
            if order.path == NAME:
                continue
            column = self._columns.get(order.path[0])
            if column is None or len(order.path) > 1:
                parts.append(ANY)
            else:
                self.used.add(column.field)
                present = f"t.{quoted(column.column)} is not null"
                parts.append(Predicate(present, exact=True, anywhere=ALL.sql))
        return all_of(parts)

    def sortable(self, orders: Iterable[Order], name_order: str) -> str | None:
        """The ORDER BY that gives Firestore's order among plain rows; None where none does.

        `name_order` is the expression that sorts as names do.
        """
        terms = []
        for order in orders:
            if order.path == NAME:
                name = name_order
            else:
                column = self._columns.get(order.path[0])
                if column is None or len(order.path) > 1 or not _sorts(column):
                    return None
                name = f"t.{quoted(column.column)}"
            terms.append(f"{name} desc" if order.descending else name)
        return ", ".join(terms)

    def _name(self, leaf: FieldFilter) -> Predicate:
        """Equality with names. Ranges are left to the evaluator: names sort by segment."""
        if leaf.op not in {Op.EQUAL, Op.IN}:
            return ANY
        operands = leaf.value if isinstance(leaf.value, list) else [leaf.value]
        keys = [
            key
            for operand in operands
            if isinstance(operand, Reference)
            and (key := self._table.key_here(escape_path(operand.name))) is not None
        ]
        return Predicate(
            f"t.{self._table.key} = any({self._arguments.add(keys, 'text[]')})", exact=True
        )

    def _json(self, root: str, path: FieldPath, nested: FieldPath, leaf: FieldFilter) -> Predicate:
        """Containment in tagged JSON. `nested`: the part of the path below the top level of
        the rest, whose keys may be odd in any row."""
        if len(nested) < len(path) and is_odd(path[0]):
            return NONE
        if any(map(is_odd, nested)):
            return ANY
        found: _Twins
        operands = leaf.value if isinstance(leaf.value, list) else [leaf.value]
        if leaf.op is Op.IS_NULL:
            found = _Twins([None])
        elif leaf.op is Op.IS_NAN:
            found = _Twins([{"$d": "NaN"}])
        elif leaf.op is Op.EQUAL:
            found = twins([leaf.value])
        elif leaf.op is Op.IN:
            found = twins(operands)
        elif leaf.op is Op.ARRAY_CONTAINS:
            found = twins([leaf.value]).inside_array()
        elif leaf.op is Op.ARRAY_CONTAINS_ANY:
            found = twins(operands).inside_array()
        else:
            return ANY
        if found.every is None:
            return ANY
        # Inside an odd map the keys are not plain: all such rows are candidates.
        outer = [path[:depth] for depth in range(len(path) - len(nested), len(path)) if depth]
        needles = [_nest(path, twin) for twin in found.every]
        needles += [_nest(part, {ODD: []}) for part in outer]
        if len(nested) == len(path):
            needles.append({ODD: []})
        if not needles:
            return NONE
        if len(needles) == 1:
            needle = self._arguments.add(needles[0], "jsonb")
            # Among misfits a plan for these values would be no better than one for any, but
            # PostgreSQL would reckon so, and plan every execution anew. So it may not see them.
            sql = f"{root} @> {f'(select {needle})' if root == BESIDE else needle}"
        else:
            several = self._arguments.add(needles, "jsonb[]")
            sql = f"{root} @> any({f'(select {several})::jsonb[]' if root == BESIDE else several})"
        return Predicate(sql, found.exact and len(needles) == len(found.every))


def all_of(parts: Sequence[Predicate]) -> Predicate:
    """AND. Parts stay in the text even if they decide nothing: they have parameters."""
    kept: dict[str, str] = {}
    for part in parts:
        for name, sql in part.kept.items():
            kept[name] = _and([kept[name], sql]) if name in kept else sql
    return Predicate(
        _and([part.sql for part in parts]),
        any(part.sql == NONE.sql for part in parts) or all(part.exact for part in parts),
        _and([part.elsewhere for part in parts]),
        kept,
    )


def any_of(parts: Sequence[Predicate]) -> Predicate:
    """OR."""
    common = [name for name in parts[0].kept if all(name in part.kept for part in parts)]
    return Predicate(
        _or([part.sql for part in parts]),
        any(part.sql == ALL.sql and part.exact for part in parts)
        or all(part.exact for part in parts),
        _or([part.elsewhere for part in parts]),
        {name: _or([part.kept[name] for part in parts]) for name in common},
    )


def _and(terms: Sequence[str]) -> str:
    return " and ".join(term for term in terms if term != ALL.sql) or ALL.sql


def _or(terms: Sequence[str]) -> str:
    return f"({' or '.join(term for term in terms if term != NONE.sql) or NONE.sql})"


# --- tagged JSON -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Twins:
    """Every JSON form of the values that equal some operands; None: too many to list."""

    every: list[Any] | None
    exact: bool = True

    def inside_array(self) -> "_Twins":
        return _Twins(None if self.every is None else [[twin] for twin in self.every], self.exact)


def twins(operands: Sequence[Any]) -> _Twins:
    """1 equals 1.0, 0 equals -0.0, null and NaN equal nothing."""
    every: list[Any] = []
    exact = True
    for operand in operands:
        if operand is None or operand != operand:
            continue
        which = kind(operand)
        if which is Kind.NUMBER:
            if abs(operand) > EXACT_DOUBLE and not math.isinf(operand):
                return _Twins(None)
            if isinstance(operand, int) or operand.is_integer():
                every += [int(operand), {"$d": float(operand)}]
                every += [{"$d": "-0.0"}] if operand == 0 else []
            else:
                every.append(to_json(operand))
        elif which in {Kind.BOOLEAN, Kind.TIMESTAMP, Kind.STRING, Kind.BYTES}:
            every.append(twin := to_json(operand))
            # A list is contained in any order of its parts.
            exact = exact and not (isinstance(twin, dict) and "$s" in twin)
        elif which is Kind.REFERENCE and "__id" not in operand.name and "\0" not in operand.name:
            every.append(to_json(operand))
        else:
            return _Twins(None)
    return _Twins(every, exact)


def _of_kind(value: str, operand: Any) -> Predicate:
    """That a value in tagged JSON may be of the operand's kind: ranges are within one."""
    which = kind(operand)
    if which not in _FORMS:
        return ANY
    name, tag = _FORMS[which]
    terms = [f"{value} ? '{tag}'"] if tag else []
    terms += [f"jsonb_typeof({value}) = '{name}'"] if name else []
    return Predicate(_or(terms), exact=False)


_FORMS = {
    Kind.BOOLEAN: ("boolean", ""),
    Kind.NUMBER: ("number", "$d"),
    Kind.TIMESTAMP: ("", "$t"),
    Kind.STRING: ("string", "$s"),
    Kind.BYTES: ("", "$b"),
    Kind.REFERENCE: ("", "$r"),
}
"""What a value of a kind is in tagged JSON: a JSON type, a tag."""


def _nest(path: FieldPath, value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


# --- columns -----------------------------------------------------------------------------------

_UNSURE = object()
"""An operand of the column's kind that PostgreSQL would not compare as Firestore does."""


def _text(operand: Any) -> Any:
    return _UNSURE if "\0" in operand else operand


def _int8(operand: Any) -> Any:
    if isinstance(operand, float):
        if not operand.is_integer():
            return _UNSURE
        operand = int(operand)
    return operand if INT64_MIN <= operand <= INT64_MAX else _UNSURE


def _double(operand: Any) -> Any:
    if isinstance(operand, int):
        return float(operand) if abs(operand) <= EXACT_DOUBLE else _UNSURE
    return operand


def _same(operand: Any) -> Any:
    return operand


_ColumnPredicate: TypeAlias = Callable[[str, FieldFilter, Arguments], Predicate]


def _scalar(which: Kind, sql: str, convert: Callable[[Any], Any]) -> _ColumnPredicate:
    """Conditions on a column of one kind."""

    def converted(operand: Any) -> Any:
        """The parameter, _UNSURE, or None for what equals nothing in the column."""
        if operand is None or operand != operand or kind(operand) is not which:
            return None
        return convert(operand)

    def predicate(name: str, leaf: FieldFilter, arguments: Arguments) -> Predicate:
        present = f"{name} is not null"
        op = leaf.op
        if op in {Op.IS_NOT_NULL, Op.IS_NOT_NAN}:
            return Predicate(present, exact=True)
        if op is Op.EQUAL or op in RANGES:
            value = converted(leaf.value)
            if value is None:
                return NONE
            if value is _UNSURE:
                return Predicate(present, exact=False)
            return Predicate(f"{name} {_SYMBOLS[op]} {arguments.add(value, sql)}", exact=True)
        if op is Op.IN and isinstance(leaf.value, list):
            values = [value for item in leaf.value if (value := converted(item)) is not None]
            if _UNSURE in values:
                return Predicate(present, exact=False)
            if not values:
                return NONE
            return Predicate(f"{name} = any({arguments.add(values, f'{sql}[]')})", exact=True)
        if op is Op.NOT_EQUAL:
            if leaf.value is None:
                return NONE
            value = converted(leaf.value)
            if value is None:
                return Predicate(present, exact=True)
            if value is not _UNSURE:
                return Predicate(f"{name} <> {arguments.add(value, sql)}", exact=True)
        if op in {Op.NOT_EQUAL, Op.NOT_IN}:
            return Predicate(present, exact=False)
        return NONE

    return predicate


_SYMBOLS = {
    Op.EQUAL: "=",
    Op.LESS_THAN: "<",
    Op.LESS_THAN_OR_EQUAL: "<=",
    Op.GREATER_THAN: ">",
    Op.GREATER_THAN_OR_EQUAL: ">=",
}


def _word(name: str, leaf: FieldFilter, codec: Codec) -> Predicate | None:
    """Equality with words of an enum; None for all else. They are few, and are literals: so
    one plan for all values of the other parameters knows which partial indexes serve."""
    if not isinstance(codec, TextCodec) or codec.words is None:
        return None
    operands = [leaf.value] if leaf.op is Op.EQUAL else leaf.value
    if leaf.op not in {Op.EQUAL, Op.IN} or not isinstance(operands, list):
        return None
    words = [literal(word) for word in operands if isinstance(word, str) and word in codec.words]
    return Predicate(f"{name} in ({', '.join(words)})", exact=True) if words else NONE


def _int_array(name: str, leaf: FieldFilter, arguments: Arguments) -> Predicate:
    if leaf.op in {Op.IS_NULL, Op.IS_NAN}:
        return NONE
    if leaf.op in {Op.ARRAY_CONTAINS, Op.ARRAY_CONTAINS_ANY}:
        several = leaf.op is Op.ARRAY_CONTAINS_ANY and isinstance(leaf.value, list)
        operands: Any = leaf.value if several else [leaf.value]
        numbers = [
            number
            for item in operands
            if isinstance(item, int | float)
            and not isinstance(item, bool)
            and item == item
            and (number := _int8(item)) is not _UNSURE
        ]
        if not numbers:
            return NONE
        return Predicate(f"{name} && {arguments.add(numbers, 'int8[]')}", exact=True)
    unary = leaf.op in {Op.IS_NOT_NULL, Op.IS_NOT_NAN}
    return Predicate(f"{name} is not null", exact=unary)


def _json_column(name: str, leaf: FieldFilter, arguments: Arguments) -> Predicate:
    """Maps and arrays: whole ones are compared by the evaluator."""
    if leaf.op in {Op.IS_NULL, Op.IS_NAN}:
        return NONE
    if leaf.op in {Op.ARRAY_CONTAINS, Op.ARRAY_CONTAINS_ANY}:
        several = leaf.op is Op.ARRAY_CONTAINS_ANY and isinstance(leaf.value, list)
        operands: Any = leaf.value if several else [leaf.value]
        found = twins(operands).inside_array()
        if found.every is not None:
            terms = [f"{name} @> {arguments.add(twin, 'jsonb')}" for twin in found.every]
            return Predicate(f"({' or '.join(terms)})", found.exact) if terms else NONE
    unary = leaf.op in {Op.IS_NOT_NULL, Op.IS_NOT_NAN}
    return Predicate(f"{name} is not null", exact=unary)


_COLUMNS: dict[type, _ColumnPredicate] = {
    TextCodec: _scalar(Kind.STRING, "text", _text),
    Int8Codec: _scalar(Kind.NUMBER, "int8", _int8),
    DoubleCodec: _scalar(Kind.NUMBER, "float8", _double),
    BoolCodec: _scalar(Kind.BOOLEAN, "bool", _same),
    BytesCodec: _scalar(Kind.BYTES, "bytea", _same),
    TimeCodec: _scalar(Kind.TIMESTAMP, "timestamptz", _same),
    IntArrayCodec: _int_array,
    JsonCodec: _json_column,
}
_SORTED = (TextCodec, BytesCodec, Int8Codec, DoubleCodec, BoolCodec, TimeCodec)


def _sorts(column: FieldColumn) -> bool:
    """Whether PostgreSQL sorts the column as Firestore sorts its values."""
    return isinstance(column.codec, _SORTED)
