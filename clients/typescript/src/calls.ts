/** Calls: the channel, deadlines, retries, cancellation. */

import { setTimeout as sleep } from "node:timers/promises";

import {
  type CallOptions as GrpcOptions,
  type ChannelCredentials,
  type ChannelOptions,
  type Client,
  type ClientReadableStream,
  type ClientUnaryCall,
  credentials,
  Metadata,
  type ServiceError,
} from "@grpc/grpc-js";

import { Attempts } from "./attempts.js";
import { type CrossfadeError, fromStatus, InvalidArgumentError } from "./errors.js";
import type { Numbers } from "./values.js";

const MAX_MESSAGE_BYTES = 11 * 1_048_576;

const PUSHBACK_METADATA = "grpc-retry-pushback-ms";

const CHANNEL_OPTIONS: ChannelOptions = {
  "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
  "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
  // One connection loads one worker of the sidecar: several addresses are used in turn, and two
  // clients of one process do not share a connection.
  "grpc.service_config": JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] }),
  "grpc.use_local_subchannel_pool": 1,
  // What is tried again is decided here, not by a service config found in DNS.
  "grpc.service_config_disable_resolution": 1,
  // A sidecar beside its application restarts in seconds: look for it sooner than gRPC would.
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 2000,
};

type Pairs = { readonly [name: string]: string | Buffer };

/** Sent with a call, or what makes it anew for each call (a `traceparent`, say). */
export type CallMetadata = Pairs | (() => Pairs);

export interface ClientOptions {
  /** Milliseconds that each operation may take, all its attempts together. 5,000. */
  timeout?: number;
  /**
   * How often UNAVAILABLE is tried again, where that is safe, and what the sidecar refused by a
   * limit, when it says after how long. 4.
   */
  retries?: number;
  /** Goes with every call. */
  metadata?: CallMetadata;
  /** Who calls: a bearer token, or what reads it anew for each call. */
  token?: string | (() => string);
  /** PEM of whoever signed the sidecar's certificate; the connection is TLS then. */
  rootCertificates?: Buffer;
  /** Those of gRPC: for TLS with a certificate of one's own. */
  credentials?: ChannelCredentials;
  /**
   * Milliseconds of silence after which it is asked whether the sidecar is still there, while
   * calls are under way; null: never. 30,000.
   */
  keepalive?: number | null;
  /** What becomes of integers and doubles. */
  numbers?: Numbers;
}

export interface CallOptions {
  /** Milliseconds, instead of the client's. */
  timeout?: number;
  /** Goes with this call, beside the client's. */
  metadata?: CallMetadata;
  /** Ends the call; it rejects with the signal's reason. A commit may have been applied. */
  signal?: AbortSignal;
}

type Method<Request, Reply> = (
  request: Request,
  metadata: Metadata,
  options: Partial<GrpcOptions>,
  callback: (error: ServiceError | null, reply: Reply) => void,
) => ClientUnaryCall;

/** The commit whose error it is. */
interface Sent {
  readonly commit: boolean;
  readonly requestId: string | undefined;
}

/** What makes a client of grpc-js. */
export type Connect<C extends Client> = new (
  target: string,
  credentials: ChannelCredentials,
  options: ChannelOptions,
) => C;

export const READ: Sent = { commit: false, requestId: undefined };

/** A connection to the sidecar, and how it is called. */
export class Calls<C extends Client> {
  readonly #target: string;
  readonly #options: ClientOptions;
  readonly #kind: Connect<C>;
  #client: C | undefined;
  /** What cancels each call under way. */
  readonly #open = new Set<() => void>();

  constructor(target: string, options: ClientOptions, kind: Connect<C>) {
    if (options.credentials !== undefined && options.rootCertificates !== undefined) {
      throw new InvalidArgumentError("credentials: rootCertificates are part of them");
    }
    if (typeof options.keepalive === "number" && !(options.keepalive > 0)) {
      throw new InvalidArgumentError("keepalive: it is a number of milliseconds above 0, or null");
    }
    this.#target = target;
    this.#options = options;
    this.#kind = kind;
  }

  /** Ends the calls under way and the connection. */
  close(): void {
    for (const stop of this.#open) {
      stop();
    }
    this.#client?.close();
    this.#client = undefined;
  }

  async unary<Request, Reply>(
    method: (client: C) => Method<Request, Reply>,
    request: Request,
    options: CallOptions,
    sent: Sent = READ,
  ): Promise<Reply> {
    const { signal } = options;
    const attempts = this.#attempts(options, !sent.commit || sent.requestId !== undefined);
    const metadata = this.metadata(options);
    for (;;) {
      signal?.throwIfAborted();
      const client = this.connected();
      let stop: (() => void) | undefined;
      try {
        return await new Promise<Reply>((resolve, reject) => {
          const deadline = Date.now() + attempts.remaining();
          const call = method(client).call(client, request, metadata, { deadline }, (error, reply) =>
            error === null ? resolve(reply) : reject(error),
          );
          stop = () => call.cancel();
          signal?.addEventListener("abort", stop);
          this.#open.add(stop);
        });
      } catch (error) {
        await this.#pause(error, attempts, signal, sent);
      } finally {
        if (stop !== undefined) {
          signal?.removeEventListener("abort", stop);
          this.#open.delete(stop);
        }
      }
    }
  }

  /**
   * The messages of a stream. One that breaks is begun anew before its first message; a
   * `resumable` one after that, too, which is said by an `undefined` among the messages.
   */
  async *stream<Reply>(
    open: (client: C, metadata: Metadata, options: Partial<GrpcOptions>) => ClientReadableStream<Reply>,
    options: CallOptions,
    { resumable }: { resumable: boolean },
  ): AsyncGenerator<Reply | undefined, void, undefined> {
    const { signal } = options;
    const attempts = this.#attempts(options, true);
    const metadata = this.metadata(options);
    let begun = false;
    for (;;) {
      signal?.throwIfAborted();
      const deadline = Date.now() + attempts.remaining();
      try {
        for await (const reply of this.messages(open(this.connected(), metadata, { deadline }), signal)) {
          begun = true;
          yield reply;
        }
        return;
      } catch (error) {
        await this.#pause(error, begun && !resumable ? undefined : attempts, signal, READ);
      }
      if (begun) {
        yield undefined;
      }
    }
  }

  /** Of a call, which is cancelled where the reader leaves, the signal says so, or the client closes. */
  async *messages<Reply>(
    call: ClientReadableStream<Reply>,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<Reply, void, undefined> {
    const stop = () => call.cancel();
    signal?.addEventListener("abort", stop);
    this.#open.add(stop);
    // What is left early is cancelled, and says so to nobody.
    call.on("error", () => undefined);
    try {
      for await (const reply of call) {
        yield reply as Reply;
      }
    } finally {
      signal?.removeEventListener("abort", stop);
      this.#open.delete(stop);
      stop();
    }
  }

  /** Waits before the next attempt, or throws what the caller gets where there is none. */
  async #pause(
    error: unknown,
    attempts: Attempts | undefined,
    signal: AbortSignal | undefined,
    sent: Sent,
  ): Promise<void> {
    signal?.throwIfAborted();
    if (!isServiceError(error)) {
      throw error;
    }
    const pause = attempts?.pause(error.code, retryAfter(error));
    if (pause === undefined) {
      throw raised(error, sent);
    }
    await rest(pause, signal);
  }

  #attempts({ timeout }: CallOptions, safe: boolean): Attempts {
    const { timeout: usual = 5000, retries = 4 } = this.#options;
    return new Attempts(timeout ?? usual, retries, safe);
  }

  metadata(options: CallOptions): Metadata {
    const metadata = new Metadata();
    for (const pairs of [this.#options.metadata, options.metadata]) {
      const made = typeof pairs === "function" ? pairs() : (pairs ?? {});
      for (const [name, value] of Object.entries(made)) {
        metadata.set(name, value);
      }
    }
    const { token } = this.#options;
    if (token !== undefined) {
      metadata.set("authorization", `Bearer ${typeof token === "function" ? token() : token}`);
    }
    return metadata;
  }

  /** Whether the client is still the one in use: not after `close`. */
  uses(client: C): boolean {
    return this.#client === client;
  }

  /** Connected at the first call. */
  connected(): C {
    const { rootCertificates, keepalive = 30_000 } = this.#options;
    this.#client ??= new this.#kind(
      this.#target,
      this.#options.credentials ??
        (rootCertificates === undefined
          ? credentials.createInsecure()
          : credentials.createSsl(rootCertificates)),
      keepalive === null
        ? CHANNEL_OPTIONS
        : {
            ...CHANNEL_OPTIONS,
            "grpc.keepalive_time_ms": keepalive,
            "grpc.keepalive_timeout_ms": 5000,
          },
    );
    return this.#client;
  }
}

/** Milliseconds after which a call that was refused by a limit may be sent again. */
export function retryAfter({ metadata }: ServiceError): number | undefined {
  const [value] = metadata.get(PUSHBACK_METADATA);
  return typeof value === "string" && /^\d+$/.test(value) ? Number(value) : undefined;
}

export async function rest(pause: number, signal: AbortSignal | undefined): Promise<void> {
  await sleep(pause, undefined, signal && { signal }).catch(() => signal?.throwIfAborted());
}

export function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && typeof error.code === "number" && "metadata" in error;
}

export function raised(error: ServiceError, sent: Sent): CrossfadeError {
  return fromStatus(error.code, error.details, sent);
}
