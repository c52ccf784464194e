"""Between protobuf messages and the pure core's values, both ways.

The messages are those of crossfade.v1, whose bytes are google.firestore.v1's.
Decoding is duck-typed, so it serves the messages of both packages; encoding
fills a message that the caller made, in place (setting `fields[key].string_value`
costs 0.4 µs, copying a ready Value 1 µs).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from operator import attrgetter
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet
from google.protobuf.wrappers_pb2 import DoubleValue, Int32Value

from crossfade.aggregate import Aggregation, AggregationKind, named
from crossfade.document import (
    NAME,
    Database,
    Document,
    FieldPath,
    Fields,
    GeoPoint,
    Reference,
    Value,
    check_document_path,
    check_id,
    format_field_path,
    from_micros,
    parse_field_path,
    to_micros,
)
from crossfade.errors import InvalidArgument, Unimplemented
from crossfade.nearest import Measure, Nearest
from crossfade.query import (
    CompositeFilter,
    Cursor,
    FieldFilter,
    Filter,
    Op,
    Order,
    Query,
    full_order,
    leaves,
)
from crossfade.write import Transform, TransformKind, Write
from crossfade_api.v1 import document_pb2 as pb
from crossfade_api.v1 import query_pb2 as query_pb

_MIN_SECONDS, _MAX_SECONDS = -62_135_596_800, 253_402_300_799


# --- values ------------------------------------------------------------------------------------


def decode_value(message: Any) -> Value:
    """The value of a Value message. Raises InvalidArgument for one that is not set."""
    return _DECODERS[message.WhichOneof("value_type")](message)  # type: ignore[no-any-return]


def decode_fields(fields: Any) -> Fields:
    """The values of a `map<string, Value>` field. Most are texts, so that is tried first."""
    decoders = _DECODERS
    found = {}
    for name in fields:
        message = fields[name]
        found[name] = message.string_value or decoders[message.WhichOneof("value_type")](message)
    return found


def _decode_array(message: Any) -> list[Value]:
    decoders = _DECODERS
    return [
        item.string_value or decoders[item.WhichOneof("value_type")](item)
        for item in message.array_value.values
    ]


def _decode_geo_point(message: Any) -> GeoPoint:
    return GeoPoint(message.geo_point_value.latitude, message.geo_point_value.longitude)


def _refuse_value(_: Any) -> Value:
    raise InvalidArgument(
        "Cannot convert firestore.v1.Value with type unset, or with one that may not be stored"
    )


class _Decoders(dict[str | None, Callable[[Any], Any]]):
    def __missing__(self, _: str | None) -> Callable[[Any], Any]:
        return _refuse_value


# By the name of the oneof's member. Most are attrgetters, which cost no call of Python's.
_DECODERS = _Decoders(
    {
        "null_value": lambda _: None,
        "boolean_value": attrgetter("boolean_value"),
        "integer_value": attrgetter("integer_value"),
        "double_value": attrgetter("double_value"),
        "timestamp_value": lambda message: from_micros(decode_time(message.timestamp_value)),
        "string_value": attrgetter("string_value"),
        "bytes_value": attrgetter("bytes_value"),
        "reference_value": lambda message: Reference(message.reference_value),
        "geo_point_value": _decode_geo_point,
        "array_value": _decode_array,
        "map_value": lambda message: decode_fields(message.map_value.fields),
    },
)


def decode_value_at(message: Any, place: str) -> Value:
    """As `decode_value`; the error says where in a request the value stands."""
    try:
        return decode_value(message)
    except InvalidArgument as error:
        raise InvalidArgument(f"{_culprit(message, place)}: {error}") from None


def _culprit(message: Any, place: str) -> str:
    """The place of the innermost value that cannot be decoded. Sought only when there is
    one: values that know where they stand would cost every decoding."""
    which = message.WhichOneof("value_type")
    inner: Iterable[tuple[str, Any]] = ()
    if which == "map_value":
        fields = message.map_value.fields
        inner = ((f"{place}.{format_field_path((name,))}", fields[name]) for name in fields)
    elif which == "array_value":
        items = message.array_value.values
        inner = ((f"{place}[{index}]", item) for index, item in enumerate(items))
    for where, value in inner:
        try:
            decode_value(value)
        except InvalidArgument:
            return _culprit(value, where)
    return place


def encode_value(value: Value, into: Any) -> None:
    """Fills an empty Value message."""
    _ENCODERS[type(value)](value, into)


def encode_fields(fields: Fields, into: Any) -> None:
    """Fills a `map<string, Value>` field."""
    for name, value in fields.items():
        _ENCODERS[type(value)](value, into[name])


def _encode_list(value: list[Value], into: Any) -> None:
    into.array_value.SetInParent()
    add = into.array_value.values.add
    for item in value:
        _ENCODERS[type(item)](item, add())


def _encode_map(value: Fields, into: Any) -> None:
    into.map_value.SetInParent()
    encode_fields(value, into.map_value.fields)


def _encode_geo_point(value: GeoPoint, into: Any) -> None:
    into.geo_point_value.latitude = value.latitude
    into.geo_point_value.longitude = value.longitude
    into.geo_point_value.SetInParent()


def _encode_timestamp(value: datetime, into: Any) -> None:
    encode_time(to_micros(value), into.timestamp_value)


def _setter(name: str) -> Any:
    def encode(value: Any, into: Any) -> None:
        setattr(into, name, value)

    return encode


_ENCODERS: dict[type, Any] = {
    type(None): lambda _, into: setattr(into, "null_value", 0),
    bool: _setter("boolean_value"),
    int: _setter("integer_value"),
    float: _setter("double_value"),
    str: _setter("string_value"),
    bytes: _setter("bytes_value"),
    Reference: lambda value, into: setattr(into, "reference_value", value.name),
    GeoPoint: _encode_geo_point,
    datetime: _encode_timestamp,
    list: _encode_list,
    dict: _encode_map,
}


def decode_time(message: Any, field: str = "timestamp") -> int:
    """Microseconds since 1970; nanoseconds are cut. Raises InvalidArgument out of range."""
    seconds, nanos = message.seconds, message.nanos
    if not _MIN_SECONDS <= seconds <= _MAX_SECONDS or not 0 <= nanos < 1_000_000_000:
        raise InvalidArgument(
            f"{field}: Timestamp seconds exceeds limit for field (the years 1 to 9999), or nanos "
            f"(0..999999999)"
        )
    return seconds * 1_000_000 + nanos // 1_000  # type: ignore[no-any-return]


def encode_time(micros: int, into: Any) -> None:
    """Fills a Timestamp message; also one that stays all zero is then present."""
    seconds, rest = divmod(micros, 1_000_000)
    into.seconds = seconds
    into.nanos = rest * 1_000
    if not micros:
        into.SetInParent()


# --- documents ---------------------------------------------------------------------------------


def decode_document(message: Any, database: Database) -> Document:
    return Document(
        database.relative(message.name),
        decode_fields(message.fields),
        decode_time(message.create_time),
        decode_time(message.update_time),
    )


def parse_document(data: bytes, database: Database) -> Document:
    return decode_document(pb.Document.FromString(data), database)


def encode_document(document: Document, database: Database, into: Any) -> None:
    into.name = database.full(document.path)
    encode_fields(document.fields, into.fields)
    encode_time(document.create_time, into.create_time)
    encode_time(document.update_time, into.update_time)


def document_bytes(document: Document, database: Database) -> bytes:
    message = pb.Document()
    encode_document(document, database, message)
    return message.SerializeToString()


def identity_of(data: bytes) -> tuple[str, int]:
    """The full name and the update_time of a serialised Document, whose fields are not read."""
    name, time = "", 0
    for number, value in scan(data):
        if number == 1 and isinstance(value, bytes):
            name = value.decode()
        elif number == 4 and isinstance(value, bytes):
            time = parse_time(value)
    return name, time


def varint(number: int) -> bytes:
    """A length as protobuf writes it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field_bytes(number: int, data: bytes) -> bytes:
    """A length-delimited field: how ready document bytes are spliced into a reply."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def join_documents(documents: Iterable[bytes], number: int = 1) -> bytes:
    """Documents as the repeated field `number` of a reply, undecoded."""
    return b"".join(field_bytes(number, data) for data in documents)


def scan(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a message, undecoded: number with bytes, or with a varint's number.

    Made for envelopes of two or three fields, whose document stays as it is.
    Raises DecodeError, as protobuf does, for bytes that are no message.
    """
    position, size = 0, len(data)
    try:
        while position < size:
            tag, position = _read_varint(data, position)
            kind = tag & 7
            if kind == 0:
                number, position = _read_varint(data, position)
                yield tag >> 3, number
                continue
            if kind == 2:
                length, position = _read_varint(data, position)
            else:
                length = _FIXED[kind]
            end = position + length
            if end > size:
                raise DecodeError("a message that ends early")
            yield tag >> 3, data[position:end]
            position = end
    except (IndexError, KeyError) as error:
        raise DecodeError("a message that ends early or cannot be read") from error


_FIXED = {1: 8, 5: 4}


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while (byte := data[position]) > 0x7F:
        number |= (byte & 0x7F) << shift
        shift += 7
        position += 1
    return number | byte << shift, position + 1


def time_bytes(micros: int) -> bytes:
    """The bytes of a Timestamp message."""
    seconds, rest = divmod(micros, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1_000).SerializeToString()


def parse_time(data: bytes) -> int:
    """Microseconds since 1970 of a Timestamp's bytes."""
    return decode_time(Timestamp.FromString(data))


# --- writes ------------------------------------------------------------------------------------


def decode_write(message: Any, database: Database, field: str = "write") -> Write:
    """A Write of either package. Raises InvalidArgument; limits are `write.check`'s business."""
    operation = message.WhichOneof("operation")
    if operation is None:
        raise InvalidArgument(
            f"{field}: empty write operation; one of update, delete or transform must be set"
        )
    mask: tuple[FieldPath, ...] | None = None
    transforms: list[Transform] = []
    fields: Fields | None = None
    if operation == "update":
        name = message.update.name
        named = message.update.fields
        try:
            fields = decode_fields(named)
        except InvalidArgument:
            for key in named:  # one of them cannot be decoded: say which
                decode_value_at(named[key], f"{field}: field {format_field_path((key,))}")
            raise
        if message.HasField("update_mask"):
            mask = tuple(
                parse_field_path(text, f"{field}.update_mask")
                for text in message.update_mask.field_paths
            )
        transforms = [_decode_transform(item, field) for item in message.update_transforms]
    elif operation == "transform":
        name, fields, mask = message.transform.document, {}, ()
        transforms = [_decode_transform(item, field) for item in message.transform.field_transforms]
    else:
        name = message.delete
        if message.HasField("update_mask"):
            raise InvalidArgument(f"{field}: a delete must not specify a document mask.")
    path = check_document_path(database.relative(name, f"{field}.name"), f"{field}.name")
    exists: bool | None = None
    update_time: int | None = None
    if message.HasField("current_document"):
        condition = message.current_document.WhichOneof("condition_type")
        if condition == "exists":
            exists = message.current_document.exists
        elif condition == "update_time":
            update_time = decode_time(message.current_document.update_time, f"{field}.update_time")
    return Write(path, fields, mask, tuple(transforms), exists, update_time)


def _decode_transform(message: Any, field: str) -> Transform:
    path = parse_field_path(message.field_path, f"{field}.field_path")
    which = message.WhichOneof("transform_type")
    if which == "set_to_server_value":
        if message.set_to_server_value != 1:
            raise InvalidArgument(
                f"{field}.set_to_server_value: ServerValue type must be specified for "
                f"set_to_server_value transformation: REQUEST_TIME (1), not "
                f"{message.set_to_server_value}"
            )
        return Transform(path, TransformKind.REQUEST_TIME)
    if which in {"append_missing_elements", "remove_all_from_array"}:
        items = [
            decode_value_at(item, f"{field}.{which}") for item in getattr(message, which).values
        ]
        return Transform(path, TransformKind(which), items)
    if which is None:
        raise InvalidArgument(
            f"{field}: Operation type must be specified for field transformation."
        )
    operand = decode_value_at(getattr(message, which), f"{field}.{which}")
    return Transform(path, TransformKind(which), operand)


def encode_write(write: Write, database: Database, into: Any) -> None:
    """Fills an empty Write message of either package."""
    name = database.full(write.path)
    if write.fields is None:
        into.delete = name
    else:
        into.update.name = name
        encode_fields(write.fields, into.update.fields)
        if write.mask is not None:
            into.update_mask.field_paths.extend(map(format_field_path, write.mask))
            into.update_mask.SetInParent()
        for transform in write.transforms:
            item = into.update_transforms.add(field_path=format_field_path(transform.path))
            if transform.kind is TransformKind.REQUEST_TIME:
                item.set_to_server_value = 1
            elif isinstance(transform.operand, list):
                values = getattr(item, transform.kind.value)
                values.SetInParent()
                for operand in transform.operand:
                    encode_value(operand, values.values.add())
            else:
                encode_value(transform.operand, getattr(item, transform.kind.value))
    if write.exists is not None:
        into.current_document.exists = write.exists
    elif write.update_time is not None:
        encode_time(write.update_time, into.current_document.update_time)


# --- queries -----------------------------------------------------------------------------------

_OPERATORS = {
    number: Op(name)
    for name, number in query_pb.StructuredQuery.FieldFilter.Operator.items()
    if number
}
_UNARY = {
    number: Op(name)
    for name, number in query_pb.StructuredQuery.UnaryFilter.Operator.items()
    if number
}


def decode_query(message: Any, parent: str, database: Database) -> Query:
    """A StructuredQuery of either package. `parent`: a document path or "" for the root.

    The message's bytes stay with the query as `raw`, unless it names documents of
    `__name__`, which may be relative here and may not be in Firestore.
    """
    if len(UnknownFieldSet(message)):  # find_nearest among them: crossfade.v1 does not know it
        raise Unimplemented("query: it has fields that are not served (find_nearest, for one)")
    if parent:
        check_document_path(parent, "parent")
    if len(selectors(message)) > 1:
        raise InvalidArgument(
            "query.from: StructuredQuery.from cannot have more than one collection selector."
        )
    collection, descendants = None, False
    for selector in selectors(message):
        collection = selector.collection_id or None
        descendants = selector.all_descendants
        if collection is not None:
            check_id(collection, "query.from.collection_id", numeric=False)
    orders = tuple(_decode_order(item) for item in message.order_by)
    query = Query(
        parent=parent,
        collection=collection,
        all_descendants=descendants,
        where=_decode_filter(message.where, database) if message.HasField("where") else None,
        order_by=orders,
        offset=message.offset,
        limit=message.limit.value if message.HasField("limit") else None,
        select=tuple(parse_field_path(f.field_path, "query.select") for f in message.select.fields)
        if message.HasField("select")
        else None,
        nearest=_decode_nearest(message),
    )
    paths = [order.path for order in full_order(query)]
    query = replace(
        query,
        start=_decode_cursor(message.start_at, paths, database)
        if message.HasField("start_at")
        else None,
        end=_decode_cursor(message.end_at, paths, database) if message.HasField("end_at") else None,
    )
    if not _names_documents(query, paths):
        query.keep_raw(message.SerializeToString())
    return query


def _names_documents(query: Query, paths: Sequence[FieldPath]) -> bool:
    """Whether `__name__` is compared with something in the query."""
    longest = max((len(c.values) for c in (query.start, query.end) if c is not None), default=0)
    return NAME in paths[:longest] or any(leaf.path == NAME for leaf in leaves(query.where))


def selectors(message: Any) -> Any:
    """The field `from`, a keyword in Python; Google's own classes call it `from_`."""
    return message.from_ if hasattr(message, "from_") else getattr(message, "from")


def _decode_order(message: Any) -> Order:
    if message.direction not in {0, 1, 2}:
        raise InvalidArgument(
            f"query.order_by.direction: Unrecognized ordering: {message.direction}"
        )
    return Order(
        parse_field_path(message.field.field_path, "query.order_by"), message.direction == 2
    )


def _decode_cursor(message: Any, paths: Sequence[FieldPath], database: Database) -> Cursor:
    values = [decode_value_at(value, "query cursor") for value in message.values]
    for index, path in enumerate(paths[: len(values)]):
        if path == NAME:
            values[index] = _relative(values[index], database, "query cursor")
    return Cursor(tuple(values), message.before)


def _decode_filter(message: Any, database: Database) -> Filter:
    which = message.WhichOneof("filter_type")
    if which == "composite_filter":
        composite = message.composite_filter
        if composite.op not in {1, 2}:
            raise InvalidArgument(
                f"query.where.op: Unsupported CompositeFilter operator: {composite.op}"
            )
        inner = tuple(_decode_filter(item, database) for item in composite.filters)
        if not inner:
            raise InvalidArgument("query.where: a composite filter without filters")
        return CompositeFilter(composite.op == 2, inner)
    if which == "field_filter":
        leaf = message.field_filter
        operator = _OPERATORS.get(leaf.op)
        if operator is None:
            raise InvalidArgument(f"query.where.op: Unknown FieldFilter operator: {leaf.op}")
        path = parse_field_path(leaf.field.field_path, "query.where.field")
        value = decode_value_at(leaf.value, "query.where.value")
        if path == NAME:
            value = (
                [_relative(item, database, "query.where") for item in value]
                if isinstance(value, list)
                else _relative(value, database, "query.where")
            )
        return FieldFilter(path, operator, value)
    if which == "unary_filter":
        unary = message.unary_filter
        operator = _UNARY.get(unary.op)
        if operator is None:
            raise InvalidArgument(f"query.where.op: Unknown UnaryFilter operator: {unary.op}")
        return FieldFilter(parse_field_path(unary.field.field_path, "query.where.field"), operator)
    raise InvalidArgument("query.where: Unknown Filter type: an empty filter")


_MEASURES = {1: Measure.EUCLIDEAN, 2: Measure.COSINE, 3: Measure.DOT_PRODUCT}


def _decode_nearest(message: Any) -> Nearest | None:
    """Only google.firestore.v1 has the field."""
    if not hasattr(message, "find_nearest") or not message.HasField("find_nearest"):
        return None
    nearest = message.find_nearest
    measure = _MEASURES.get(nearest.distance_measure)
    if measure is None:
        raise InvalidArgument(
            f"find_nearest.distance_measure: Unknown Distance Measure: {nearest.distance_measure}"
        )
    return Nearest(
        path=parse_field_path(nearest.vector_field.field_path, "find_nearest.vector_field"),
        vector=decode_value_at(nearest.query_vector, "find_nearest.query_vector"),
        measure=measure,
        limit=nearest.limit.value,
        result_field=nearest.distance_result_field or None,
        threshold=nearest.distance_threshold.value
        if nearest.HasField("distance_threshold")
        else None,
    )


def decode_aggregations(message: Any) -> tuple[Aggregation, ...]:
    """The aggregations of a StructuredAggregationQuery, each with an alias."""
    return named(_decode_aggregation(item) for item in message.aggregations)


def encode_aggregations(aggregations: Sequence[Aggregation]) -> bytes:
    """The fields of a StructuredAggregationQuery but for its query."""
    message = query_pb.StructuredAggregationQuery()
    for aggregation in aggregations:
        item = message.aggregations.add(alias=aggregation.alias)
        operator = getattr(item, aggregation.kind.value)
        operator.SetInParent()
        if aggregation.path is not None:
            operator.field.field_path = format_field_path(aggregation.path)
        elif aggregation.up_to is not None:
            operator.up_to.value = aggregation.up_to
    return message.SerializeToString()


def _decode_aggregation(message: Any) -> Aggregation:
    which = message.WhichOneof("operator")
    if which is None:
        raise InvalidArgument("aggregations: Operator field in Aggregation is not set.")
    kind = AggregationKind(which)
    if kind is AggregationKind.COUNT:
        up_to = message.count.up_to.value if message.count.HasField("up_to") else None
        return Aggregation(kind, message.alias, up_to=up_to)
    path = parse_field_path(getattr(message, which).field.field_path, f"aggregations.{which}.field")
    return Aggregation(kind, message.alias, path)


def _relative(value: Value, database: Database, field: str) -> Value:
    """An operand for `__name__`: the same reference with a relative path."""
    if not isinstance(value, Reference):
        return value
    return Reference(database.relative(value.name, field))


def encode_query(query: Query, database: Database) -> bytes:
    """The bytes of a StructuredQuery; references of `__name__` become full names."""
    if query.raw is not None:
        return query.raw
    message = query_pb.StructuredQuery()
    selector = selectors(message).add()
    selector.collection_id = query.collection or ""
    selector.all_descendants = query.all_descendants
    if query.where is not None:
        _encode_filter(query.where, database, message.where)
    for order in query.order_by:
        item = message.order_by.add(direction=2 if order.descending else 1)
        item.field.field_path = format_field_path(order.path)
    paths = [order.path for order in full_order(query)]
    for cursor, into in ((query.start, message.start_at), (query.end, message.end_at)):
        if cursor is None:
            continue
        into.before = cursor.before
        into.SetInParent()
        for index, value in enumerate(cursor.values):
            named = index < len(paths) and paths[index] == NAME
            encode_value(_full(value, database) if named else value, into.values.add())
    message.offset = query.offset
    if query.limit is not None:
        message.limit.value = query.limit
        message.limit.SetInParent()
    if query.select is not None:
        message.select.SetInParent()
        for path in query.select:
            message.select.fields.add(field_path=format_field_path(path))
    nearest = b"" if query.nearest is None else field_bytes(9, _nearest_bytes(query.nearest))
    return message.SerializeToString() + nearest


def _nearest_bytes(nearest: Nearest) -> bytes:
    """google.firestore.v1's FindNearest, for which there is no message here."""
    vector = pb.Value()
    encode_value(nearest.vector, vector)
    data = field_bytes(1, field_bytes(2, format_field_path(nearest.path).encode()))
    data += field_bytes(2, vector.SerializeToString())
    data += b"\x18" + varint(_MEASURE_NUMBERS[nearest.measure])
    data += field_bytes(4, Int32Value(value=nearest.limit).SerializeToString())
    if nearest.result_field is not None:
        data += field_bytes(5, nearest.result_field.encode())
    if nearest.threshold is not None:
        data += field_bytes(6, DoubleValue(value=nearest.threshold).SerializeToString())
    return data


_MEASURE_NUMBERS = {measure: number for number, measure in _MEASURES.items()}


def _encode_filter(where: Filter, database: Database, into: Any) -> None:
    if isinstance(where, CompositeFilter):
        into.composite_filter.op = 2 if where.any_of else 1
        for inner in where.filters:
            _encode_filter(inner, database, into.composite_filter.filters.add())
        return
    if where.op in _UNARY_NUMBERS:
        into.unary_filter.op = _UNARY_NUMBERS[where.op]
        into.unary_filter.field.field_path = format_field_path(where.path)
        return
    into.field_filter.field.field_path = format_field_path(where.path)
    into.field_filter.op = _OPERATOR_NUMBERS[where.op]
    value = where.value
    if where.path == NAME:
        value = (
            [_full(item, database) for item in value]
            if isinstance(value, list)
            else _full(value, database)
        )
    encode_value(value, into.field_filter.value)


_OPERATOR_NUMBERS = {op: number for number, op in _OPERATORS.items()}
_UNARY_NUMBERS = {op: number for number, op in _UNARY.items()}


def _full(value: Value, database: Database) -> Value:
    """The inverse of `_relative`."""
    return Reference(database.full(value.name)) if isinstance(value, Reference) else value
