/**
 * The tables of layers, `layers.db`: all SQL of this module. A row's id names the layer's directory, its FUSE node and its mount, and is never used again.
 * Layers with the same key are the same layer, whatever image wants them; a broken one keeps its id but gives its key free.
 */

import { open } from "node:fs/promises";
import { DatabaseSync, type StatementSync } from "node:sqlite";
import type { Digest } from "../base/digest.ts";
import { type ErrorCode, HeadstartError } from "../base/errors.ts";
import type { LayerIdentity, LayerRole } from "../formats/format.ts";
import { LAYER_STATES, type LayerState, type LayerStateName } from "./state.ts";

/** Where a layer can be fetched again, without secrets. Opaque here, but for being JSON. */
export type LayerSource = { readonly [field: string]: unknown };

/** "layer": metadata and data in one file. "image": the metadata of a merged tree, whose data lie in the "data" files of its `devices`. */
export type LayerKind = "layer" | "image" | "data";
const KINDS: readonly LayerKind[] = ["layer", "image", "data"];

export interface LayerKey {
  /** Left out: "layer". */
  readonly kind?: LayerKind;
  readonly identity: LayerIdentity;
  readonly role: LayerRole;
  /** Name of the format's adapter; "eager" when the whole blob is pulled. */
  readonly format: string;
  /** Digest of the table (zTOC, TOC, bootstrap); null for "eager". */
  readonly indexDigest: Digest | null;
  /** Of data files: images that disagree about a chunk have different ones of the same blob. Left out: 0. */
  readonly variant?: number;
}

export interface LayerRow extends LayerKey {
  readonly id: number;
  readonly kind: LayerKind;
  readonly variant: number;
  /** Of an image: its data files, in the order of their device numbers. */
  readonly devices: readonly number[];
  readonly state: LayerState;
  readonly source: LayerSource;
  /** Bytes of the layer file, and inodes; 0 before it exists. */
  readonly imageSize: number;
  readonly inodeCount: number;
  /** Bytes of the uncompressed stream. */
  readonly streamLength: number;
  /** The boot in which the state was written. */
  readonly bootId: string;
  readonly createdMs: number;
}

/** One version after the other; never changed once released. */
const MIGRATIONS = [
  `CREATE TABLE layers (
     id INTEGER PRIMARY KEY AUTOINCREMENT,
     key TEXT NOT NULL,
     state TEXT NOT NULL,
     code TEXT,
     reason TEXT,
     digest TEXT NOT NULL,
     size INTEGER NOT NULL,
     media_type TEXT NOT NULL,
     diff_id TEXT NOT NULL,
     role TEXT NOT NULL,
     format TEXT NOT NULL,
     index_digest TEXT,
     source TEXT NOT NULL,
     image_size INTEGER NOT NULL DEFAULT 0,
     inode_count INTEGER NOT NULL DEFAULT 0,
     stream_length INTEGER NOT NULL DEFAULT 0,
     boot_id TEXT NOT NULL DEFAULT '',
     created_ms INTEGER NOT NULL
   ) STRICT;
   CREATE UNIQUE INDEX layers_by_key ON layers (key) WHERE state <> 'broken';`,
  `ALTER TABLE layers ADD COLUMN kind TEXT NOT NULL DEFAULT 'layer';
   ALTER TABLE layers ADD COLUMN variant INTEGER NOT NULL DEFAULT 0;
   CREATE TABLE devices (
     image INTEGER NOT NULL,
     position INTEGER NOT NULL,
     data INTEGER NOT NULL,
     PRIMARY KEY (image, position)
   ) STRICT, WITHOUT ROWID;
   CREATE INDEX devices_by_data ON devices (data);`,
  `CREATE INDEX layers_by_digest ON layers (digest);`,
] as const;

type SqlRow = Record<string, string | number | null>;

export class LayerRows implements Disposable {
  readonly #path: string;
  readonly #db: DatabaseSync;
  readonly #insert: StatementSync;
  readonly #byKey: StatementSync;
  readonly #byId: StatementSync;
  readonly #byDigest: StatementSync;
  readonly #all: StatementSync;
  readonly #setState: StatementSync;
  readonly #setFacts: StatementSync;
  readonly #delete: StatementSync;
  readonly #devicesOf: StatementSync;
  readonly #usersOf: StatementSync;
  readonly #addDevice: StatementSync;
  readonly #dropDevices: StatementSync;

  /** Throws HS_FORMAT_UNSUPPORTED for a database of a newer program. */
  constructor(path: string) {
    this.#path = path;
    this.#db = new DatabaseSync(path);
    this.#db.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 5000;");
    const version = this.#db.prepare("PRAGMA user_version").get()?.user_version as number;
    if (version > MIGRATIONS.length) {
      this.#db.close();
      throw new HeadstartError("HS_FORMAT_UNSUPPORTED", {
        what: `${path} has version ${version}, of a newer headstart`,
      });
    }
    for (let next = version; next < MIGRATIONS.length; next++) {
      this.#db.exec(`BEGIN; ${MIGRATIONS[next]} PRAGMA user_version = ${next + 1}; COMMIT;`);
    }
    this.#insert = this.#db.prepare(
      `INSERT INTO layers (key, state, digest, size, media_type, diff_id, role, format, index_digest, source, created_ms, kind, variant)
       VALUES (?, 'opening', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    );
    this.#byKey = this.#db.prepare("SELECT * FROM layers WHERE key = ? AND state <> 'broken'");
    this.#byId = this.#db.prepare("SELECT * FROM layers WHERE id = ?");
    this.#byDigest = this.#db.prepare("SELECT * FROM layers WHERE digest = ? ORDER BY id");
    this.#all = this.#db.prepare("SELECT * FROM layers ORDER BY id");
    this.#setState = this.#db.prepare("UPDATE layers SET state = ?, code = ?, reason = ?, boot_id = ? WHERE id = ?");
    this.#setFacts = this.#db.prepare(
      "UPDATE layers SET image_size = ?, inode_count = ?, stream_length = ? WHERE id = ?",
    );
    this.#delete = this.#db.prepare("DELETE FROM layers WHERE id = ?");
    this.#devicesOf = this.#db.prepare("SELECT data FROM devices WHERE image = ? ORDER BY position");
    this.#usersOf = this.#db.prepare("SELECT DISTINCT image FROM devices WHERE data = ? ORDER BY image");
    this.#addDevice = this.#db.prepare("INSERT INTO devices (image, position, data) VALUES (?, ?, ?)");
    this.#dropDevices = this.#db.prepare("DELETE FROM devices WHERE image = ?");
  }

  /** A new row in state "opening". */
  insert(key: LayerKey, source: LayerSource, createdMs: number): LayerRow {
    const { identity } = key;
    const result = this.#insert.run(
      keyText(key),
      identity.digest,
      identity.size,
      identity.mediaType,
      identity.diffID,
      key.role,
      key.format,
      key.indexDigest,
      JSON.stringify(source),
      createdMs,
      key.kind ?? "layer",
      key.variant ?? 0,
    );
    return this.get(Number(result.lastInsertRowid))!;
  }

  /** The layer of that key that is not broken. */
  find(key: LayerKey): LayerRow | null {
    return this.#read(this.#byKey.get(keyText(key)) as SqlRow | undefined);
  }

  get(id: number): LayerRow | null {
    return this.#read(this.#byId.get(id) as SqlRow | undefined);
  }

  /** All of one blob, in order of ids. */
  ofDigest(digest: Digest): LayerRow[] {
    return (this.#byDigest.all(digest) as SqlRow[]).map((row) => this.#read(row)!);
  }

  all(): LayerRow[] {
    return (this.#all.all() as SqlRow[]).map((row) => this.#read(row)!);
  }

  setState(id: number, state: LayerState, bootId: string): void {
    const code = state.t === "broken" ? state.code : null;
    const reason = (state.t === "broken" || state.t === "opening" ? state.reason : null) ?? null;
    this.#setState.run(state.t, code, reason, bootId, id);
  }

  setFacts(id: number, facts: { imageSize: number; inodeCount: number; streamLength: number }): void {
    this.#setFacts.run(facts.imageSize, facts.inodeCount, facts.streamLength, id);
  }

  /** The data files of an image that is being made. */
  setDevices(image: number, data: readonly number[]): void {
    this.#transaction(() => {
      this.#dropDevices.run(image);
      data.forEach((id, position) => {
        this.#addDevice.run(image, position, id);
      });
    });
  }

  /** Images that refer to a data file. */
  usersOf(data: number): number[] {
    return (this.#usersOf.all(data) as SqlRow[]).map((row) => row.image as number);
  }

  delete(id: number): void {
    this.#transaction(() => {
      this.#dropDevices.run(id);
      this.#delete.run(id);
    });
  }

  /**
   * What was committed before this survives a power loss when it resolves. Commits of a WAL are in its file but not synced (synchronous = NORMAL); it is synced here in the thread pool,
   * since SQLite would do it in the main thread, for seconds when the disk is busy.
   */
  async sync(): Promise<void> {
    try {
      await using wal = await open(`${this.#path}-wal`, "r");
      await wal.sync();
    } catch (error) {
      // without one everything is in the database, synced by the checkpoint
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    }
  }

  [Symbol.dispose](): void {
    this.#db.close();
  }

  #read(row: SqlRow | undefined): LayerRow | null {
    if (row === undefined) return null;
    const isImage = row.kind === "image";
    const devices = isImage ? (this.#devicesOf.all(row.id!) as SqlRow[]).map((device) => device.data as number) : [];
    return readRow(row, devices);
  }

  #transaction(work: () => void): void {
    this.#db.exec("BEGIN");
    try {
      work();
      this.#db.exec("COMMIT");
    } catch (error) {
      this.#db.exec("ROLLBACK");
      throw error;
    }
  }
}

/** Equal keys mean equal layer files. */
export function keyText(key: LayerKey): string {
  const { identity } = key;
  const text = [identity.digest, identity.diffID, key.role, key.format, key.indexDigest ?? "-"].join(" ");
  const { kind = "layer", variant = 0 } = key;
  return kind === "layer" ? text : `${text} ${kind} ${variant}`;
}

function readRow(row: SqlRow, devices: readonly number[]): LayerRow {
  const kind = KINDS.find((known) => known === row.kind);
  if (kind === undefined) throw new HeadstartError("HS_MALFORMED", { what: `layer ${row.id} is of kind ${row.kind}` });
  return {
    id: row.id as number,
    kind,
    variant: row.variant as number,
    devices,
    state: readState(row),
    identity: {
      digest: row.digest as Digest,
      size: row.size as number,
      mediaType: row.media_type as string,
      diffID: row.diff_id as Digest,
    },
    role: row.role as LayerRole,
    format: row.format as string,
    indexDigest: row.index_digest as Digest | null,
    source: JSON.parse(row.source as string) as LayerSource,
    imageSize: row.image_size as number,
    inodeCount: row.inode_count as number,
    streamLength: row.stream_length as number,
    bootId: row.boot_id as string,
    createdMs: row.created_ms as number,
  };
}

function readState(row: SqlRow): LayerState {
  const name = LAYER_STATES.find((known) => known === row.state);
  if (name === undefined)
    throw new HeadstartError("HS_MALFORMED", { what: `layer ${row.id} is in state ${row.state}` });
  if (name === "opening" && row.reason !== null) return { t: name, reason: row.reason as string };
  if (name !== "broken") return { t: name satisfies LayerStateName };
  return { t: name, code: row.code as ErrorCode, reason: row.reason as string };
}
