import { randomBytes } from "node:crypto";
import { after } from "node:test";

import { Firestore } from "@google-cloud/firestore";

/** A client of a project of its own, so that no other file's documents are in sight. */
export function connect() {
  if (!process.env.FIRESTORE_EMULATOR_HOST) {
    throw new Error("FIRESTORE_EMULATOR_HOST has to say where the server is");
  }
  // There is no cloud to look for; the library would ask for one at a well-known address.
  process.env.METADATA_SERVER_DETECTION ??= "none";
  // A sidecar serves one database, that of its own project.
  const projectId = process.env.CROSSFADE_NODE_PROJECT ?? `node-${randomBytes(4).toString("hex")}`;
  const db = new Firestore({ projectId });
  after(() => db.terminate());
  return db;
}

export const ids = (snapshot) => snapshot.docs.map((doc) => doc.id);

/** gRPC's numbers. */
export const Code = { INVALID_ARGUMENT: 3, NOT_FOUND: 5, ALREADY_EXISTS: 6, FAILED_PRECONDITION: 9 };
