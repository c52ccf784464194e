"""violet.v1 as services of the sidecar: what `[migration] mappings = "violet"` adds to it.

The engine finds this module by the name of the mappings and knows nothing else of it.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from crossfade.call import Call
from crossfade.document import Database
from crossfade.migrator import Documents
from crossfade.rpc.methods import FINDS, READS, WRITES, Needs
from crossfade.rpc.server import Unary, Wrapper, parse
from crossfade.transactions import Transactions
from crossfade_api.v1 import violet_pb2
from violet.operations.data import Data
from violet.operations.methods.content import ContentMethods
from violet.operations.methods.miners import MinerMethods
from violet.operations.methods.users import UserMethods
from violet.operations.methods.work import WorkMethods

METHODS: Mapping[str, Callable[[Data], Any]] = {
    "Tasks": WorkMethods,
    "Miners": MinerMethods,
    "Users": UserMethods,
    "Content": ContentMethods,
}


READERS = frozenset(
    {
        *("GetTask", "ListTasks", "CountTasks", "GetTaskCompletion", "GetTaskStatistics"),
        *("ListTasksForEvaluation", "ListEvaluations", "GetFinalResult"),
        *("GetMiner", "ListMiners", "GetMinerStatus", "ListMinerStatus", "PickAvailableMiners"),
        *("GetConsensus", "ListConsensus", "GetReportStatistics"),
        *("GetMinerMetrics", "ListMinerMetrics", "GetValidator", "ListValidators"),
        *("GetUser", "GetUserByEmail", "GetUserByApiKey", "GetUserByCredentials", "UserExists"),
        "ListUsers",
        *("GetFile", "ListFiles", "GetFileStatistics", "GetVoice", "GetDefaultVoice"),
        *("ListVoices", "GetText", "ListSystemMetrics"),
    }
)
"""The methods that a reader may call. All others need a writer."""


def handlers(
    migrator: Documents, transactions: Transactions, database: Database, wrap: Wrapper
) -> dict[str, grpc.GenericRpcHandler]:
    """The services by their full names."""
    data = Data(migrator, transactions, database)
    found = {}
    for name, service in violet_pb2.DESCRIPTOR.services_by_name.items():
        implementation = METHODS[name](data)
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            method.name: wrap.unary(
                f"{service.full_name}/{method.name}",
                _unary(getattr(implementation, snake(method.name)), method),
                needs_of(method.name),
            )
            for method in service.methods
        }
        found[service.full_name] = grpc.method_handlers_generic_handler(service.full_name, methods)
    return found


def needs_of(method: str) -> Needs:
    """By the name alone, which no two services share. A list's documents are field 1."""
    if method not in READERS:
        return WRITES
    return FINDS if method.startswith("List") else READS


def snake(name: str) -> str:
    """create_task of CreateTask."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _unary(implementation: Callable[[Any, Call], Awaitable[Any]], method: Any) -> Unary:
    """From bytes to bytes. A reply that is bytes already is passed on as it is."""
    kind = GetMessageClass(method.input_type)

    async def handle(data: bytes, call: Call) -> bytes:
        reply = await implementation(parse(kind, data), call)
        return reply if isinstance(reply, bytes) else reply.SerializeToString()

    return handle
