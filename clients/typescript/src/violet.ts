/**
 * The proxy server's operations, violet.v1: every RPC of the four services as a method.
 *
 * Thin on purpose: requests and replies are the messages of violet.proto. What a request leaves
 * out is as in an empty message; a `requestId` is drawn where one is taken, so that everything
 * may be sent again. Documents in replies are read with `fieldsOf`, fields written with `fieldsFor`.
 */

import { randomUUID } from "node:crypto";

import { type CallOptions as GrpcOptions, Client, type Metadata, type MethodDefinition, type ServiceError } from "@grpc/grpc-js";

import { type CallOptions, Calls, type ClientOptions } from "./calls.js";
import { decodeFields, encodeFields } from "./codec.js";
import { InternalError } from "./errors.js";
import type { Document, Value as ValueMessage } from "./gen/crossfade/v1/document.js";
import { ContentService, MinersService, TasksService, UsersService } from "./gen/violet/v1/violet.js";
import type { Fields, Numbers } from "./values.js";

/** A service's methods as the caller has them. */
export type Methods<Definition> = {
  readonly [Name in keyof Definition]: Definition[Name] extends {
    requestDeserialize: (bytes: Buffer) => infer Request;
    responseDeserialize: (bytes: Buffer) => infer Reply;
  }
    ? (request?: Partial<Request>, options?: CallOptions) => Promise<Reply>
    : never;
};

type Defined = { readonly [name: string]: MethodDefinition<any, any> };

const EMPTY = Buffer.alloc(0);

/** A sidecar at `target`; arguments, errors and retries are those of `Crossfade`. */
export class Violet {
  readonly tasks: Methods<typeof TasksService>;
  readonly miners: Methods<typeof MinersService>;
  readonly users: Methods<typeof UsersService>;
  readonly content: Methods<typeof ContentService>;
  readonly #calls: Calls<Client>;
  readonly #numbers: Numbers;

  constructor(target: string, options: ClientOptions = {}) {
    this.#calls = new Calls(target, options, Client);
    this.#numbers = options.numbers ?? "plain";
    this.tasks = this.#methods(TasksService);
    this.miners = this.#methods(MinersService);
    this.users = this.#methods(UsersService);
    this.content = this.#methods(ContentService);
  }

  /** Ends the calls under way and the connection. A later call connects anew. */
  close(): void {
    this.#calls.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** The fields of a reply's document. Throws InternalError where it has none. */
  fieldsOf<T extends object = Fields>(document: Document | undefined): T {
    if (document === undefined) {
      throw new InternalError("the reply has no document");
    }
    return decodeFields(document.fields, this.#numbers) as T;
  }

  /** What `fields` of a request is made of. Throws InvalidArgumentError. */
  fieldsFor(fields: object): Map<string, ValueMessage> {
    return encodeFields(fields, this.#numbers);
  }

  #methods<Definition extends Defined>(service: Definition): Methods<Definition> {
    const made = Object.entries(service).map(([name, method]) => [
      name,
      (request: object = {}, options: CallOptions = {}) => this.#ask(method, request, options),
    ]);
    return Object.fromEntries(made) as Methods<Definition>;
  }

  async #ask(
    method: MethodDefinition<any, any>,
    given: object,
    options: CallOptions,
  ): Promise<unknown> {
    const request = { ...method.requestDeserialize(EMPTY), ...given };
    const writes = "requestId" in request;
    if (writes) {
      request.requestId ||= randomUUID();
    }
    const call = (
      client: Client,
    ): ((
      message: unknown,
      metadata: Metadata,
      more: Partial<GrpcOptions>,
      callback: (error: ServiceError | null, reply: unknown) => void,
    ) => ReturnType<Client["makeUnaryRequest"]>) =>
      (message, metadata, more, callback) =>
        client.makeUnaryRequest(
          method.path,
          method.requestSerialize,
          method.responseDeserialize,
          message,
          metadata,
          more,
          callback,
        );
    return this.#calls.unary(call, request, options, {
      commit: writes,
      requestId: writes ? request.requestId : undefined,
    });
  }
}
