/** A sidecar of a few lines, for what a real one cannot be told to do: it fails on demand. */

import { after } from "node:test";

import { type handleUnaryCall, Metadata, Server, ServerCredentials, type ServerWritableStream, status } from "@grpc/grpc-js";

import { type ClientOptions, Crossfade } from "../src/index.js";
import {
  type AggregateReply,
  type CommitReply,
  type CommitRequest,
  CrossfadeService,
  type GetDocumentReply,
  type QueryReply,
  type WatchReply,
  type WatchRequest,
} from "../src/gen/crossfade/v1/crossfade.js";

const time = { seconds: 1_760_000_000n, nanos: 123_456_000 };

export const named = (id: string) => `projects/p/databases/(default)/documents/a/${id}`;

export const document = (id: string, updateTime = time) => ({
  name: named(id),
  fields: new Map(),
  createTime: time,
  updateTime,
});

/** Fails the next calls of a method. `after`: once it is done; `pages`: once so many were sent. */
export interface Failure {
  method: string;
  code?: status;
  times?: number;
  after?: boolean;
  pages?: number;
  /** Milliseconds: what the refusal says. */
  retryAfter?: number;
}

function told({ code = status.UNAVAILABLE, retryAfter }: Failure): {
  code: status;
  details: string;
  metadata: Metadata;
} {
  const metadata = new Metadata();
  if (retryAfter !== undefined) {
    metadata.set("grpc-retry-pushback-ms", String(retryAfter));
  }
  return { code, details: "told to", metadata };
}

export class Fake {
  readonly calls: string[] = [];
  readonly headers: { [name: string]: unknown }[] = [];
  readonly commits: CommitRequest[] = [];
  readonly done = new Set<string>();
  failures: Failure[] = [];
  watches: (WatchReply | status)[][] = [];
  /** Milliseconds before an answer. */
  delay = 0;
  cancelled = 0;
  readonly #server = new Server();

  /** Resolves to the address served. */
  async start(address = "127.0.0.1:0"): Promise<string> {
    this.#server.addService(CrossfadeService, {
      getDocument: this.#unary("get", (): GetDocumentReply => ({ document: document("1") })),
      commit: this.#unary("commit", (request: CommitRequest) => this.#commit(request)),
      aggregate: this.#unary("aggregate", (): AggregateReply => ({ result: undefined, readTime: time })),
      batchGetDocuments: this.#stream("getAll", (id) => ({
        found: [document(id)],
        missing: [],
        readTime: time,
      })),
      watch: (call: ServerWritableStream<WatchRequest, WatchReply>) => this.#watch(call),
      query: this.#stream(
        "query",
        (id): QueryReply => ({
          documents: [document(id)],
          readTime: time,
          skippedResults: 0,
          done: false,
        }),
      ),
    });
    const port = await new Promise<number>((resolve, reject) => {
      this.#server.bindAsync(address, ServerCredentials.createInsecure(), (error, bound) =>
        error === null ? resolve(bound) : reject(error),
      );
    });
    return `127.0.0.1:${port}`;
  }

  stop(): void {
    this.#server.forceShutdown();
  }

  count(method: string): number {
    return this.calls.filter((call) => call === method).length;
  }

  /** Plays the next of `watches`; one that ends without a status stays open. */
  #watch(call: ServerWritableStream<WatchRequest, WatchReply>): void {
    this.calls.push("watch");
    call.on("cancelled", () => (this.cancelled += 1));
    for (const reply of this.watches.shift() ?? [status.UNAVAILABLE]) {
      if (typeof reply === "number") {
        call.emit("error", { code: reply, details: "told to" });
      } else {
        call.write(reply);
      }
    }
  }

  #commit(request: CommitRequest): CommitReply {
    const replayed = this.done.has(request.requestId);
    if (!replayed) {
      this.commits.push(request);
    }
    if (request.requestId) {
      this.done.add(request.requestId);
    }
    const writeResults = request.writes.map(() => ({ updateTime: time, transformResults: [] }));
    return { writeResults, commitTime: time, replayed };
  }

  #failing(method: string): Failure | undefined {
    this.calls.push(method);
    const failure = this.failures.find((each) => each.method === method && each.times !== 0);
    if (failure !== undefined) {
      failure.times = (failure.times ?? 1) - 1;
    }
    return failure;
  }

  #unary<Request, Reply>(method: string, answer: (request: Request) => Reply): handleUnaryCall<Request, Reply> {
    return (call, callback) => {
      this.headers.push(call.metadata.getMap());
      const failure = this.#failing(method);
      const reply = failure === undefined || failure.after ? answer(call.request) : null;
      const answering = setTimeout(() => {
        if (failure === undefined) {
          callback(null, reply);
        } else {
          callback(told(failure));
        }
      }, this.delay);
      call.on("cancelled", () => {
        clearTimeout(answering);
        this.cancelled += 1;
      });
    };
  }

  #stream<Reply>(method: string, page: (id: string) => Reply) {
    return (call: {
      write: (reply: Reply) => boolean;
      end: () => void;
      emit: (event: "error", error: object) => boolean;
      on: (event: "cancelled", listener: () => void) => unknown;
    }) => {
      call.on("cancelled", () => (this.cancelled += 1));
      const failure = this.#failing(method);
      for (let number = 0; number < (failure ? (failure.pages ?? 0) : 4); number += 1) {
        call.write(page(String(number)));
      }
      if (failure !== undefined) {
        call.emit("error", told(failure));
      } else if (this.delay === 0) {
        call.end();
      }
    };
  }
}

/** A fake and a client of it, both ended after the tests of the file. */
export async function pair(options: ClientOptions = {}): Promise<[Fake, Crossfade, string]> {
  const fake = new Fake();
  const target = await fake.start();
  const crossfade = new Crossfade(target, options);
  after(() => {
    crossfade.close();
    fake.stop();
  });
  return [fake, crossfade, target];
}
