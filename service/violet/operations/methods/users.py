"""violet.v1.Users."""

import secrets
from typing import Any

from crossfade.call import Call
from crossfade.document import Document, Fields
from crossfade.errors import InvalidArgument, NotFound
from crossfade.query import Filter
from crossfade.transactions import Transaction
from crossfade_api.v1 import violet_pb2 as pb
from violet.operations import messages, pages, users
from violet.operations.data import Data, carry_out, equals, given, matching, path_in, secret_path_in
from violet.operations.decision import Decision, drawn, found
from violet.operations.methods.putting import put

KEY_BYTES = 32
CREDENTIALS = ("hotkey", "coldkey_address", "uid", "network", "netuid", "role")


class UserMethods:
    def __init__(self, data: Data) -> None:
        self.data = data

    # --- one user -------------------------------------------------------------------------------

    async def create_user(self, request: pb.CreateUserRequest, call: Call) -> pb.UserChanged:
        user_id = request.user_id or drawn(request.request_id or None, "user")
        path = path_in("users", user_id, "user_id")
        email = users.normal(request.email)
        email_path = secret_path_in("user_emails", email, "email")
        api_key = request.api_key or secrets.token_urlsafe(KEY_BYTES)
        key_path = secret_path_in("api_keys", api_key, "api_key")
        if not request.role:
            raise InvalidArgument("role: it is empty")
        fields = messages.fields_of(request.fields)

        async def work(transaction: Transaction) -> pb.UserChanged:
            user, email_index, key_index = await transaction.get_all([path, email_path, key_path])
            if transaction.replayed:
                return self._changed(path, user, replayed=True)
            decision = users.create(
                user_id,
                email,
                request.role,
                api_key,
                fields,
                transaction.now,
                user=user,
                email_owner=await self._owner(transaction, email_index, "email", email),
                key_owner=await self._owner(transaction, key_index, "api_key", api_key),
            )
            return self._made(path, carry_out(transaction, decision))

        return await self.data.run(work, call, request.request_id)

    async def _owner(
        self, transaction: Transaction, index: Document | None, field: str, value: str
    ) -> Document | None:
        """The user that an index names, else one that has the value and no index."""
        user_id = users.owner_of(index)
        user = None
        if user_id is not None:
            user = await transaction.get(path_in("users", user_id, "user_id"))
        if user is not None and user.fields.get(field) == value:
            return user
        holders = await transaction.find(matching("users", equals(field, value)))
        return holders[0] if holders else user

    async def get_user(self, request: pb.GetRequest, call: Call) -> bytes:
        return messages.found(await self.data.stored(path_in("users", request.id, "id"), call))

    async def get_user_by_email(self, request: pb.GetUserByEmailRequest, call: Call) -> pb.Found:
        user = await self._by_email(request.email, call)
        if user is None:
            raise NotFound("users: there is none of this email")
        return self._found(user)

    async def user_exists(
        self, request: pb.GetUserByEmailRequest, call: Call
    ) -> pb.UserExistsReply:
        return pb.UserExistsReply(exists=await self._by_email(request.email, call) is not None)

    async def _by_email(self, given_email: str, call: Call) -> Document | None:
        email = users.normal(given_email)
        index = await self.data.find(secret_path_in("user_emails", email, "email"), call)
        user_id = users.owner_of(index)
        if user_id is not None:
            user = await self.data.find(path_in("users", user_id, "user_id"), call)
            if users.holds_email(user, email):
                return user
        holders, _ = await self.data.documents(
            matching("users", equals("email", email)), 1, "", call
        )
        return holders[0] if holders else None

    async def get_user_by_api_key(self, request: pb.GetUserByApiKeyRequest, call: Call) -> pb.Found:
        path = secret_path_in("api_keys", request.api_key, "api_key")
        user_id = users.owner_of(await self.data.find(path, call))
        user = None
        if user_id is not None:
            user = await self.data.find(path_in("users", user_id, "user_id"), call)
        # Read after the index: of a key that was rotated meanwhile it says no more.
        valid = users.holds_key(user, request.api_key)
        if user is None or not valid or not (users.is_active(user) or request.inactive_too):
            raise NotFound("users: there is none of this api_key")
        return self._found(user)

    async def get_user_by_credentials(
        self, request: pb.GetUserByCredentialsRequest, call: Call
    ) -> pb.Found:
        given_: Any = request
        filters: list[Filter] = [
            equals(name, getattr(given_, name)) for name in CREDENTIALS if given_.HasField(name)
        ]
        if not filters:
            raise InvalidArgument("credentials: there are none")
        query = matching("users", *filters)
        holders, _ = await self.data.documents(query, 1, "", call)
        if not holders:
            raise NotFound("users: there is none of these credentials")
        return self._found(holders[0])

    # --- changes --------------------------------------------------------------------------------

    async def rotate_api_key(self, request: pb.RotateApiKeyRequest, call: Call) -> pb.UserChanged:
        path = path_in("users", request.user_id, "user_id")
        api_key = request.api_key or secrets.token_urlsafe(KEY_BYTES)
        key_path = secret_path_in("api_keys", api_key, "api_key")

        async def work(transaction: Transaction) -> pb.UserChanged:
            user, index = await transaction.get_all([path, key_path])
            if transaction.replayed:
                return self._changed(path, user, replayed=True)
            user = found(user, path)
            owner = await self._owner(transaction, index, "api_key", api_key)
            decision = users.rotate(user, request.user_id, api_key, owner, transaction.now)
            return self._made(path, carry_out(transaction, decision))

        return await self.data.run(work, call, request.request_id)

    async def upgrade_role(self, request: pb.UpgradeRoleRequest, call: Call) -> pb.UserChanged:
        path = path_in("users", request.user_id, "user_id")
        fields = messages.fields_of(request.fields)
        if not request.role:
            raise InvalidArgument("role: it is empty")

        async def work(transaction: Transaction) -> pb.UserChanged:
            user = await transaction.get(path)
            if transaction.replayed:
                return self._changed(path, user, replayed=True)
            user = found(user, path)
            key = user.fields.get("api_key")
            index = None
            if isinstance(key, str) and key:
                index = await transaction.get(secret_path_in("api_keys", key, "api_key"))
            decision = users.upgrade(user, index, request.role, fields, transaction.now)
            return self._made(path, carry_out(transaction, decision))

        return await self.data.run(work, call, request.request_id)

    async def record_login(self, request: pb.UserRequest, call: Call) -> pb.Changed:
        path = path_in("users", request.user_id, "user_id")

        def decide(user: Document | None, moment: int) -> Decision[Fields]:
            return users.record_login(found(user, path), moment)

        return await put(self.data, path, decide, call, request.request_id)

    async def set_user_active(self, request: pb.SetUserActiveRequest, call: Call) -> pb.Changed:
        path = path_in("users", request.user_id, "user_id")

        def decide(user: Document | None, moment: int) -> Decision[Fields]:
            return users.set_active(found(user, path), request.active, moment)

        return await put(self.data, path, decide, call, request.request_id)

    async def list_users(self, request: pb.ListUsersRequest, call: Call) -> pb.Documents:
        query = matching(
            "users",
            given("role", request.role),
            equals("is_active", request.active) if request.HasField("active") else None,
        )
        size = pages.size_of(request.page_size)
        return messages.documents(*await self.data.page(query, size, request.page_token, call))

    # --- replies --------------------------------------------------------------------------------

    def _found(self, user: Document) -> pb.Found:
        reply = pb.Found()
        messages.encode_whole(self.data.database, user, reply.document)
        return reply

    def _made(self, path: str, fields: Fields) -> pb.UserChanged:
        reply = pb.UserChanged(
            user_id=path.rpartition("/")[2], api_key=str(fields.get("api_key") or "")
        )
        messages.encode(self.data.database, path, fields, reply.document)
        return reply

    def _changed(self, path: str, user: Document | None, *, replayed: bool) -> pb.UserChanged:
        if user is None:
            return pb.UserChanged(replayed=replayed)
        reply = self._made(path, user.fields)
        reply.replayed = replayed
        return reply
