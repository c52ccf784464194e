/** What an answer means. */

import { randomUUID } from "node:crypto";

import { decodeDocument, decodeTime, decodeValue } from "./codec.js";
import { InternalError, InvalidArgumentError } from "./errors.js";
import type {
  BatchGetDocumentsReply,
  CommitReply,
  CommitRequest,
  GetDocumentReply,
} from "./gen/crossfade/v1/crossfade.js";
import { type CommitResult, type Numbers, relative, type Snapshot } from "./values.js";
import type { Write } from "./writes.js";

export function getResult<T extends object>(reply: GetDocumentReply, numbers: Numbers): Snapshot<T> {
  if (reply.document === undefined) {
    throw new InternalError("the reply to a get has no document");
  }
  return decodeDocument(reply.document, numbers);
}

/** One entry per path, in order. A path the sidecar said nothing of is an error, not undefined. */
export function batchGetResult<T extends object>(
  replies: readonly BatchGetDocumentsReply[],
  asked: readonly string[],
  numbers: Numbers,
): (Snapshot<T> | undefined)[] {
  const known = new Map<string, Snapshot<T> | undefined>();
  for (const { found, missing } of replies) {
    for (const name of missing) {
      known.set(relative(name), undefined);
    }
    for (const document of found) {
      const snapshot = decodeDocument<T>(document, numbers);
      known.set(snapshot.path, snapshot);
    }
  }
  const silent = asked.filter((path) => !known.has(relative(path)));
  if (silent.length > 0) {
    throw new InternalError(`the reply says nothing of ${silent.length} of ${asked.length} documents`);
  }
  return asked.map((path) => known.get(relative(path)));
}

/** `requestId`: undefined for a fresh one, null for none. Throws InvalidArgumentError. */
export function commitRequest(
  writes: readonly Write[],
  requestId: string | null | undefined,
  numbers: Numbers,
): CommitRequest {
  if (writes.length === 0) {
    throw new InvalidArgumentError("commit: no writes");
  }
  if (requestId === "") {
    throw new InvalidArgumentError("requestId: empty; null does without one");
  }
  return {
    writes: writes.map((write) => write.message(numbers)),
    requestId: requestId === undefined ? randomUUID() : (requestId ?? ""),
  };
}

export function commitResult(
  reply: CommitReply,
  request: CommitRequest,
  numbers: Numbers,
): CommitResult {
  if (reply.writeResults.length !== request.writes.length) {
    throw new InternalError(
      `the reply has ${reply.writeResults.length} results for ${request.writes.length} writes`,
    );
  }
  const writes = reply.writeResults.map(({ updateTime, transformResults }) => ({
    updateTime: updateTime && decodeTime(updateTime),
    transformResults: transformResults.map((value) => decodeValue(value, numbers)),
  }));
  return {
    commitTime: decodeTime(reply.commitTime),
    writes,
    updateTime: writes[0]!.updateTime,
    replayed: reply.replayed,
  };
}
