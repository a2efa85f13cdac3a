/**
 * The snapshotter's own memory: one row a snapshot, in SQLite (WAL, synchronous=FULL: a row that was answered for survives a power loss). Owns its SQL; no
 * rules here (snapshots.ts), no directories (directories.ts). Everything is synchronous, and so is whatever runs inside `transaction`: nothing interleaves.
 * Invariants: ids are never reused (AUTOINCREMENT), they name directories and owners of mounts; a parent has a row as long as it has children (foreign
 * key); the file is locked as long as it is open, so that two daemons never share one root.
 * All times are microseconds since 1970: finer than a client's clock needs, and exact in a number until 2255.
 */

import { DatabaseSync, type SQLOutputValue, type StatementSync } from "node:sqlite";
import { HeadstartError } from "../base/errors.ts";
import { failpoint } from "../base/failpoint.ts";
import type { LayerId } from "./provider.ts";

export type SnapshotKind = "view" | "active" | "committed";
export type Labels = Readonly<Record<string, string>>;

export interface SnapshotRow {
  readonly id: number;
  /** Key (active, view) or name (committed): opaque text of containerd's. */
  readonly name: string;
  readonly parentId: number | null;
  /** The parent's name, "" without one. */
  readonly parent: string;
  readonly kind: SnapshotKind;
  readonly createdUs: number;
  readonly updatedUs: number;
  readonly labels: Labels;
  /** The layer that this snapshot was claimed over; null: its content is its own directory. */
  readonly layer: LayerId | null;
  /** Why containerd unpacks this one itself, for the status. */
  readonly reason: string | null;
  /** Measured usage of a committed directory; null until somebody asked. */
  readonly usage: { readonly bytes: number; readonly inodes: number } | null;
  /** Why it cannot be used any more (reconcile.ts), or null. */
  readonly broken: string | null;
}

export interface NewSnapshot {
  readonly name: string;
  readonly parentId: number | null;
  readonly kind: SnapshotKind;
  readonly nowUs: number;
  readonly labels: Labels;
  readonly layer: LayerId | null;
  readonly reason: string | null;
}

/** `containerd.io/snapshot.ref`: the chainID that an extraction makes; what claims are found by. */
export const REF_LABEL = "containerd.io/snapshot.ref";

const KINDS = { view: 1, active: 2, committed: 3 } as const;
const KIND_NAMES = [undefined, "view", "active", "committed"] as const;

/** In order, never edited once released: `user_version` counts those that were applied. */
const MIGRATIONS: readonly string[] = [
  `CREATE TABLE snapshots (
     id INTEGER PRIMARY KEY AUTOINCREMENT,
     name TEXT NOT NULL UNIQUE,
     parent INTEGER REFERENCES snapshots(id),
     kind INTEGER NOT NULL CHECK (kind IN (1, 2, 3)),
     created_us INTEGER NOT NULL,
     updated_us INTEGER NOT NULL,
     labels TEXT NOT NULL,
     layer INTEGER,
     reason TEXT,
     bytes INTEGER,
     inodes INTEGER,
     broken TEXT,
     ref TEXT GENERATED ALWAYS AS (labels ->> '$."${REF_LABEL}"') VIRTUAL
   ) STRICT;
   CREATE INDEX snapshots_parent ON snapshots(parent);
   CREATE INDEX snapshots_ref ON snapshots(ref, parent) WHERE ref IS NOT NULL;
   CREATE INDEX snapshots_layer ON snapshots(layer) WHERE layer IS NOT NULL;
   CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;`,
];

const COLUMNS =
  "s.id, s.name, s.parent, p.name AS parent_name, s.kind, s.created_us, s.updated_us, s.labels, s.layer, s.reason, s.bytes, s.inodes, s.broken";
const SELECT = `SELECT ${COLUMNS} FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent`;
/** The index by name: left to itself SQLite walks all rows without a parent (19 ms against 0.1 ms a claim with 5000 of them). */
const SELECT_BY_REF = `SELECT ${COLUMNS} FROM snapshots s INDEXED BY snapshots_ref LEFT JOIN snapshots p ON p.id = s.parent WHERE s.ref = ?`;

/** How long `open` waits for a daemon that is just handing over. */
const BUSY_MS = 5000;

export class SnapshotStore {
  readonly #database: DatabaseSync;
  readonly #statements = new Map<string, StatementSync>();
  #depth = 0;

  /** Throws HS_STATE_BUSY, HS_STATE_DAMAGED, HS_STATE_VERSION. */
  constructor(path: string, options: { busyMs?: number } = {}) {
    let database: DatabaseSync | undefined;
    try {
      database = new DatabaseSync(path, {
        timeout: options.busyMs ?? BUSY_MS,
        enableForeignKeyConstraints: true,
      });
      // exclusive before the first access: the lock is taken with it and kept, and WAL needs no shared-memory file
      database.exec("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;");
      migrate(database, path);
    } catch (error) {
      database?.close();
      throw stateError(error, path);
    }
    this.#database = database;
  }

  close(): void {
    if (this.#database.isOpen) this.#database.close();
  }

  /** All or nothing. May be nested: the outermost one commits. */
  transaction<T>(work: () => T): T {
    if (this.#depth > 0) return work();
    this.#database.exec("BEGIN IMMEDIATE");
    this.#depth++;
    try {
      const result = work();
      failpoint("snapshotter:transaction");
      this.#database.exec("COMMIT");
      return result;
    } catch (error) {
      if (this.#database.isTransaction) this.#database.exec("ROLLBACK");
      throw error;
    } finally {
      this.#depth--;
    }
  }

  byName(name: string): SnapshotRow | null {
    return this.#one(`${SELECT} WHERE s.name = ?`, name);
  }

  byId(id: number): SnapshotRow | null {
    return this.#one(`${SELECT} WHERE s.id = ?`, id);
  }

  /** Rows with an id above `afterId`, in order of ids: a walk by pages holds nothing between them. */
  page(afterId: number, limit: number): SnapshotRow[] {
    return this.#prepare(`${SELECT} WHERE s.id > ? ORDER BY s.id LIMIT ?`).all(afterId, limit).map(toRow);
  }

  /** The snapshot and its ancestors, itself first. */
  chain(id: number): SnapshotRow[] {
    const chain: SnapshotRow[] = [];
    for (let row = this.byId(id); row !== null; row = row.parentId === null ? null : this.byId(row.parentId)) {
      chain.push(row);
    }
    return chain;
  }

  hasChildren(id: number): boolean {
    return this.#prepare("SELECT 1 FROM snapshots WHERE parent = ? LIMIT 1").get(id) !== undefined;
  }

  /** A sound committed snapshot that stands for `ref` upon this parent: what containerd will look for after ALREADY_EXISTS (specs/containerd.md 4.3). */
  findByRef(ref: string, parentId: number | null): SnapshotRow | null {
    return this.#one(
      `${SELECT_BY_REF} AND s.parent IS ? AND s.kind = ${KINDS.committed} AND s.broken IS NULL ORDER BY s.id LIMIT 1`,
      ref,
      parentId,
    );
  }

  /** All rows that carry this `containerd.io/snapshot.ref`, in order of ids. */
  byRef(ref: string): SnapshotRow[] {
    return this.#prepare(`${SELECT_BY_REF} ORDER BY s.id`).all(ref).map(toRow);
  }

  layersInUse(): Set<LayerId> {
    const rows = this.#prepare("SELECT DISTINCT layer FROM snapshots WHERE layer IS NOT NULL").all();
    return new Set(rows.map((row) => row.layer as number));
  }

  insert(snapshot: NewSnapshot): number {
    const { lastInsertRowid } = this.#prepare(
      "INSERT INTO snapshots (name, parent, kind, created_us, updated_us, labels, layer, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    ).run(
      snapshot.name,
      snapshot.parentId,
      KINDS[snapshot.kind],
      snapshot.nowUs,
      snapshot.nowUs,
      JSON.stringify(snapshot.labels),
      snapshot.layer,
      snapshot.reason,
    );
    return Number(lastInsertRowid);
  }

  rename(id: number, name: string): void {
    this.#prepare("UPDATE snapshots SET name = ? WHERE id = ?").run(name, id);
  }

  /** Active becomes committed: another name, other labels, perhaps another parent, both times new. */
  commit(id: number, change: { name: string; parentId: number | null; labels: Labels; nowUs: number }): void {
    this.#prepare(
      `UPDATE snapshots SET name = ?, parent = ?, labels = ?, created_us = ?, updated_us = ?, kind = ${KINDS.committed} WHERE id = ?`,
    ).run(change.name, change.parentId, JSON.stringify(change.labels), change.nowUs, change.nowUs, id);
  }

  setLabels(id: number, labels: Labels, nowUs: number): void {
    this.#prepare("UPDATE snapshots SET labels = ?, updated_us = ? WHERE id = ?").run(
      JSON.stringify(labels),
      nowUs,
      id,
    );
  }

  setUsage(id: number, usage: { bytes: number; inodes: number }): void {
    this.#prepare("UPDATE snapshots SET bytes = ?, inodes = ? WHERE id = ?").run(usage.bytes, usage.inodes, id);
  }

  setBroken(id: number, why: string | null): void {
    this.#prepare("UPDATE snapshots SET broken = ? WHERE id = ?").run(why, id);
  }

  remove(id: number): void {
    this.#prepare("DELETE FROM snapshots WHERE id = ?").run(id);
  }

  /** A remembered fact, e.g. the boot that the daemon last ran in. */
  fact(key: string): string | null {
    const row = this.#prepare("SELECT value FROM facts WHERE key = ?").get(key);
    return row === undefined ? null : (row.value as string);
  }

  setFact(key: string, value: string): void {
    this.#prepare("INSERT INTO facts (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = ?2").run(
      key,
      value,
    );
  }

  #one(sql: string, ...values: (string | number | null)[]): SnapshotRow | null {
    const row = this.#prepare(sql).get(...values);
    return row === undefined ? null : toRow(row);
  }

  #prepare(sql: string): StatementSync {
    let statement = this.#statements.get(sql);
    if (statement === undefined) {
      statement = this.#database.prepare(sql);
      this.#statements.set(sql, statement);
    }
    return statement;
  }
}

function toRow(row: Record<string, SQLOutputValue>): SnapshotRow {
  return {
    id: row.id as number,
    name: row.name as string,
    parentId: row.parent as number | null,
    parent: (row.parent_name as string | null) ?? "",
    kind: KIND_NAMES[row.kind as number]!,
    createdUs: row.created_us as number,
    updatedUs: row.updated_us as number,
    labels: JSON.parse(row.labels as string) as Labels,
    layer: row.layer as number | null,
    reason: row.reason as string | null,
    usage: row.bytes === null ? null : { bytes: row.bytes as number, inodes: row.inodes as number },
    broken: row.broken as string | null,
  };
}

function migrate(database: DatabaseSync, path: string): void {
  const version = database.prepare("PRAGMA user_version").get()?.user_version as number;
  if (version > MIGRATIONS.length) {
    throw new HeadstartError("HS_STATE_VERSION", {
      what: `${path}: version ${version}, this headstart knows ${MIGRATIONS.length}`,
    });
  }
  for (const [index, sql] of MIGRATIONS.entries()) {
    if (index >= version) database.exec(`BEGIN EXCLUSIVE; ${sql} PRAGMA user_version = ${index + 1}; COMMIT`);
  }
}

function stateError(error: unknown, path: string): unknown {
  const code = (error as { errcode?: number }).errcode;
  // the low byte is the primary result code: SQLITE_BUSY 5, SQLITE_LOCKED 6, SQLITE_CORRUPT 11, SQLITE_NOTADB 26
  const primary = code === undefined ? 0 : code & 0xff;
  if (primary === 5 || primary === 6) return new HeadstartError("HS_STATE_BUSY", { what: path, cause: error });
  if (primary === 11 || primary === 26) return new HeadstartError("HS_STATE_DAMAGED", { what: path, cause: error });
  return error;
}
