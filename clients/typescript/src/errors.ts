/**
 * One class for each gRPC status a call can end with.
 *
 * "Not there" (NotFoundError) and "nobody could say" (UnavailableError, DeadlineExceededError)
 * are different classes and never stand in for each other.
 */

import { status } from "@grpc/grpc-js";

/** Base of all. */
export class CrossfadeError extends Error {
  /** The gRPC status. */
  readonly code: status;
  /** The sentence that came with it. */
  readonly details: string;
  /**
   * On errors of commits that carried one: a commit whose outcome is not known (UNAVAILABLE,
   * DEADLINE_EXCEEDED, UNKNOWN) may be sent again with it and is done once.
   */
  readonly requestId: string | undefined;

  constructor(code: status, details = "", requestId?: string) {
    super(details ? `${status[code]}: ${details}` : status[code]);
    this.name = new.target.name;
    this.code = code;
    this.details = details;
    this.requestId = requestId;
  }
}

/** The server failed in a way it has no word for. */
export class UnknownError extends CrossfadeError {
  constructor(details?: string, requestId?: string) {
    super(status.UNKNOWN, details, requestId);
  }
}

/** The commit may or may not have been applied. Ask again with the same requestId. */
export class OutcomeUnknownError extends UnknownError {}

/** The server, or something on the way, cancelled the call. */
export class CallCancelledError extends CrossfadeError {
  constructor(details?: string, requestId?: string) {
    super(status.CANCELLED, details, requestId);
  }
}

/** The request can never succeed as it is. Also raised before anything is sent. */
export class InvalidArgumentError extends CrossfadeError {
  constructor(details?: string, requestId?: string) {
    super(status.INVALID_ARGUMENT, details, requestId);
  }
}

/** No answer in time. A commit may have been applied. */
export class DeadlineExceededError extends CrossfadeError {
  constructor(details?: string, requestId?: string) {
    super(status.DEADLINE_EXCEEDED, details, requestId);
  }
}

/** The document is known not to exist. */
export class NotFoundError extends CrossfadeError {
  constructor(details?: string, requestId?: string) {
    super(status.NOT_FOUND, details, requestId);
  }
}

/** A create met an existing document. */
export class AlreadyExistsError extends CrossfadeError {
  constructor(details?: string, requestId?: string) {
    super(status.ALREADY_EXISTS, details, requestId);
  }
}

export class PermissionDeniedError extends CrossfadeError {
  constructor(details?: string, requestId?: string) {
    super(status.PERMISSION_DENIED, details, requestId);
  }
}

/** A quota or a size limit. */
export class ResourceExhaustedError extends CrossfadeError {
  constructor(details?: string, requestId?: string) {
    super(status.RESOURCE_EXHAUSTED, details, requestId);
  }
}

/** The request is fine, the state it met is not. */
export class FailedPreconditionError extends CrossfadeError {
  constructor(details?: string, requestId?: string) {
    super(status.FAILED_PRECONDITION, details, requestId);
  }
}

/** Not done because of a conflict; the whole operation may be tried again. */
export class AbortedError extends CrossfadeError {
  constructor(details?: string, requestId?: string) {
    super(status.ABORTED, details, requestId);
  }
}

export class OutOfRangeError extends CrossfadeError {
  constructor(details?: string, requestId?: string) {
    super(status.OUT_OF_RANGE, details, requestId);
  }
}

/** The server does not serve this call; often it is not a Crossfade sidecar. */
export class UnimplementedError extends CrossfadeError {
  constructor(details?: string, requestId?: string) {
    super(status.UNIMPLEMENTED, details, requestId);
  }
}

/** A defect of the server, or a reply that this client cannot read. */
export class InternalError extends CrossfadeError {
  constructor(details?: string, requestId?: string) {
    super(status.INTERNAL, details, requestId);
  }
}

/** The sidecar, or the store behind it, could not be asked. A commit may have been applied. */
export class UnavailableError extends CrossfadeError {
  constructor(details?: string, requestId?: string) {
    super(status.UNAVAILABLE, details, requestId);
  }
}

export class DataLossError extends CrossfadeError {
  constructor(details?: string, requestId?: string) {
    super(status.DATA_LOSS, details, requestId);
  }
}

export class UnauthenticatedError extends CrossfadeError {
  constructor(details?: string, requestId?: string) {
    super(status.UNAUTHENTICATED, details, requestId);
  }
}

type ErrorClass = new (details?: string, requestId?: string) => CrossfadeError;

const CLASSES: ReadonlyMap<status, ErrorClass> = new Map<status, ErrorClass>([
  [status.CANCELLED, CallCancelledError],
  [status.UNKNOWN, UnknownError],
  [status.INVALID_ARGUMENT, InvalidArgumentError],
  [status.DEADLINE_EXCEEDED, DeadlineExceededError],
  [status.NOT_FOUND, NotFoundError],
  [status.ALREADY_EXISTS, AlreadyExistsError],
  [status.PERMISSION_DENIED, PermissionDeniedError],
  [status.RESOURCE_EXHAUSTED, ResourceExhaustedError],
  [status.FAILED_PRECONDITION, FailedPreconditionError],
  [status.ABORTED, AbortedError],
  [status.OUT_OF_RANGE, OutOfRangeError],
  [status.UNIMPLEMENTED, UnimplementedError],
  [status.INTERNAL, InternalError],
  [status.UNAVAILABLE, UnavailableError],
  [status.DATA_LOSS, DataLossError],
  [status.UNAUTHENTICATED, UnauthenticatedError],
]);

/** The error of a status. UNKNOWN of a commit is an OutcomeUnknownError. */
export function fromStatus(
  code: status,
  details: string,
  { commit = false, requestId }: { commit?: boolean; requestId?: string | undefined } = {},
): CrossfadeError {
  const found = CLASSES.get(code) ?? UnknownError;
  const kind = commit && code === status.UNKNOWN ? OutcomeUnknownError : found;
  return new kind(details, requestId);
}
