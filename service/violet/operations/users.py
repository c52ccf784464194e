"""Users, with their indexes by email and by key. Pure.

An index document says whose an email or a key is. In three commits, as they were, two
users could get one email, and a rotated key could stay valid: here a user and its
indexes are one commit. An index whose user is gone, or says otherwise, gives nothing away.
"""

from crossfade.document import Document, Fields
from crossfade.errors import AlreadyExists, InvalidArgument
from crossfade.write import Write
from violet.operations.decision import Decision, rewrite
from violet.operations.fields import at, text

PROTECTED = ("user_id", "email", "api_key", "api_key_created_at", "role", "is_active")
"""Fields that operations of their own set."""


def user_path(user_id: str) -> str:
    return f"users/{user_id}"


def email_path(email: str) -> str:
    return f"user_emails/{email}"


def key_path(api_key: str) -> str:
    return f"api_keys/{api_key}"


def normal(email: str) -> str:
    """As it is stored. Raises InvalidArgument where nothing is left."""
    found = email.strip().lower()
    if not found:
        raise InvalidArgument("email: it is empty")
    return found


def owner_of(index: Document | None) -> str | None:
    """The id of the user that an index names."""
    return None if index is None else text(index.fields.get("user_id")) or None


def check_fields(fields: Fields) -> None:
    for name in PROTECTED:
        if name in fields:
            raise InvalidArgument(f"fields.{name}: this operation does not set it so")


def holds_email(user: Document | None, email: str) -> bool:
    return user is not None and user.fields.get("email") == email


def holds_key(user: Document | None, api_key: str) -> bool:
    """Whether the key is valid: an index may have survived a rotation."""
    return user is not None and user.fields.get("api_key") == api_key


def is_active(user: Document) -> bool:
    return user.fields.get("is_active") is not False


def create(
    user_id: str,
    email: str,
    role: str,
    api_key: str,
    fields: Fields,
    now: int,
    *,
    user: Document | None,
    email_owner: Document | None,
    key_owner: Document | None,
) -> Decision[Fields]:
    """A user and its indexes. `*_owner`: the user that an index which is there names.

    Raises AlreadyExists where the id, the email or the key is another's.
    """
    if user is not None:
        raise AlreadyExists("users: there is a user of this user_id")
    if holds_email(email_owner, email):
        raise AlreadyExists("users: there is a user of this email")
    if holds_key(key_owner, api_key):
        raise AlreadyExists("users: there is a user of this api_key")
    check_fields(fields)
    after: Fields = {
        "created_at": at(now),
        "updated_at": at(now),
        "last_login": None,
        **fields,
        "user_id": user_id,
        "email": email,
        "role": role,
        "api_key": api_key,
        "api_key_created_at": at(now),
        "is_active": True,
    }
    return Decision(
        after,
        (
            Write(user_path(user_id), after),
            Write(email_path(email), {"user_id": user_id, "created_at": after["created_at"]}),
            _index(user_id, api_key, role, now),
        ),
    )


def rotate(
    user: Document, user_id: str, api_key: str, key_owner: Document | None, now: int
) -> Decision[Fields]:
    """A new key; the old one's index goes in the same commit."""
    old = text(user.fields.get("api_key"))
    if key_owner is not None and key_owner.path != user.path and holds_key(key_owner, api_key):
        raise AlreadyExists("users: there is a user of this api_key")
    after: Fields = {
        **user.fields,
        "api_key": api_key,
        "api_key_created_at": at(now),
        "updated_at": at(now),
    }
    writes = [*rewrite(user, after), _index(user_id, api_key, text(after.get("role")), now)]
    if old and old != api_key:
        writes.append(Write(key_path(old), None))
    return Decision(after, tuple(writes))


def record_login(user: Document, now: int) -> Decision[Fields]:
    after: Fields = {**user.fields, "last_login": at(now)}
    return Decision(after, rewrite(user, after))


def set_active(user: Document, active: bool, now: int) -> Decision[Fields]:
    after: Fields = {**user.fields, "is_active": active, "updated_at": at(now)}
    return Decision(after, rewrite(user, after))


def upgrade(
    user: Document, index: Document | None, role: str, fields: Fields, now: int
) -> Decision[Fields]:
    """A new role with what belongs to it; the key's index has the role, too. `index`: that
    of the user's key."""
    check_fields(fields)
    after: Fields = {**user.fields, **fields, "role": role, "updated_at": at(now)}
    writes = rewrite(user, after)
    if index is not None and owner_of(index) == text(user.fields.get("user_id")):
        writes += rewrite(index, {**index.fields, "role": role})
    return Decision(after, writes)


def _index(user_id: str, api_key: str, role: str, now: int) -> Write:
    return Write(key_path(api_key), {"user_id": user_id, "role": role, "created_at": at(now)})
