/**
 * The ladder: which way of mounting works here, found out once at start by mounting a tiny image and reading it, never by a table of systems (specs/erofs-fuse.md 17).
 *
 *   1  EROFS known to the kernel (else modprobe)
 *   2  a file of our FUSE mount, mounted by mount(2)     directio if the patch level allows it, else buffered
 *   3  a loop device with direct I/O over such a file
 *   4  a FUSE tree of our own                            not built: too slow to be worth a second file system before a kernel needs it
 *   5  none: images are not claimed, containerd unpacks them as ever
 *
 * The same for sealed local files (native), and, where a file of the FUSE mount can be mounted, once more with the data in another one (images over data files: Linux 5.16). The result is plain
 * data for `headstart status`.
 */

import { execFile } from "node:child_process";
import { closeSync, constants, ftruncateSync, mkdirSync, openSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { Bitmap } from "../base/bitmap.ts";
import { describeError, HeadstartError } from "../base/errors.ts";
import { writeFully } from "../base/files.ts";
import { type FileTree, FileTreeBuilder, FileType } from "../erofs/file-tree.ts";
import { BLOCK_SIZE } from "../erofs/placement.ts";
import { layoutDevices, layoutLazy } from "../erofs/write.ts";
import type { HoleServer } from "../fuse/hole-server.ts";
import { UnmountFlag, unmountAsync } from "../linux/mount.ts";
import { findMount, readMountInfo } from "../linux/mountinfo.ts";
import { type Backing, mountErofs } from "./erofs-mount.ts";
import { fuseTimeoutWarnings, kernelGate, runningKernel } from "./kernel.ts";

export interface LadderStep {
  readonly step:
    | "erofs"
    | "file over FUSE"
    | "loop over FUSE"
    | "own FUSE tree"
    | "data files"
    | "native file"
    | "native loop";
  readonly outcome: "works" | "failed" | "skipped";
  readonly detail: string;
}

export interface Ladder {
  readonly kernel: string;
  /** How a layer with holes is mounted; null: lazy loading is impossible here. */
  readonly overFuse: Backing | null;
  readonly directio: boolean;
  /** True where an image may have its data in other files, as Nydus images do. */
  readonly devices: boolean;
  /** How a sealed layer is mounted; null: EROFS is impossible here. */
  readonly native: Backing | null;
  readonly steps: readonly LadderStep[];
  readonly warnings: readonly string[];
}

export interface ProbeOptions {
  /** Serving already. */
  readonly server: HoleServer;
  /** A directory for the probe's image and mount point, on the file system of the layers. */
  readonly directory: string;
  /** Try only this way. */
  readonly backing?: Backing | "auto";
  /** As uname -r says, for tests. */
  readonly release?: string;
}

/** Node ids below FIRST_LAYER_NODEID (layers.ts) are no layer's. */
const PROBE_NODEID = 2;
const PROBE_NAME = "probe.erofs";
const PROBE_DATA_NODEID = 3;
const PROBE_DATA_NAME = "probe-data.erofs";
const HELLO = "hello, erofs\n";

/** Leaves nothing mounted. Throws only what would break everything else too (a full disk). */
export async function probeLadder(options: ProbeOptions): Promise<Ladder> {
  const gate = kernelGate(options.release ?? runningKernel());
  const steps: LadderStep[] = [];
  const result = { overFuse: null as Backing | null, devices: false, native: null as Backing | null };
  const note = (step: LadderStep["step"], outcome: LadderStep["outcome"], detail: string) =>
    steps.push({ step, outcome, detail });
  const done = (): Ladder => ({
    kernel: gate.version,
    ...result,
    directio: result.overFuse === "file" && gate.directio,
    steps,
    warnings: fuseTimeoutWarnings(),
  });

  if (!(await hasErofs())) {
    note("erofs", "failed", "not in /proc/filesystems, and `modprobe erofs` did not bring it");
    return done();
  }
  note("erofs", "works", "in /proc/filesystems");

  await using image = await ProbeImage.make(options.directory);
  const attempt = async (
    step: LadderStep["step"],
    backing: Backing,
    file: string,
    directio: boolean,
    devices: readonly string[] = [],
  ) => {
    const forced = options.backing ?? "auto";
    if (forced !== "auto" && forced !== backing) {
      note(step, "skipped", `the configuration says backing = "${forced}"`);
      return false;
    }
    if (backing === "file" && !gate.fileBacked) {
      note(step, "skipped", gate.reason);
      return false;
    }
    try {
      await image.readThrough({ file, target: image.target, backing, directio, devices });
      note(
        step,
        "works",
        backing === "file" ? (directio ? "directio" : `buffered${gate.reason && `: ${gate.reason}`}`) : "direct I/O",
      );
      return true;
    } catch (error) {
      note(step, "failed", describeError(error));
      return false;
    }
  };

  image.serve(options.server);
  try {
    const file = options.server.path({ name: PROBE_NAME });
    if (await attempt("file over FUSE", "file", file, gate.directio)) result.overFuse = "file";
    else if (await attempt("loop over FUSE", "loop", file, false)) result.overFuse = "loop";
    else note("own FUSE tree", "skipped", "not built");
    if (result.overFuse !== null) {
      const data = [options.server.path({ name: PROBE_DATA_NAME })];
      const directio = result.overFuse === "file" && gate.directio;
      result.devices = await attempt("data files", result.overFuse, image.metadataPath, directio, data);
    }
  } finally {
    await options.server.removeFile(PROBE_NODEID);
    await options.server.removeFile(PROBE_DATA_NODEID);
  }
  if (await attempt("native file", "file", image.path, false)) result.native = "file";
  else if (await attempt("native loop", "loop", image.path, false)) result.native = "loop";
  if (result.overFuse === null && result.native !== null)
    result.devices = await attempt("data files", result.native, image.metadataPath, false, [image.dataPath]);
  return done();
}

async function hasErofs(): Promise<boolean> {
  const known = async () => /^\s*(?:nodev\s+)?erofs$/m.test(await readFile("/proc/filesystems", "latin1"));
  if (await known()) return true;
  // what fails shows in what is known afterwards
  await promisify(execFile)("modprobe", ["erofs"], { timeout: 10_000 }).catch(() => undefined);
  return await known();
}

/** One directory with one file, written like any layer, and once more as metadata and data apart. The files stay, and are written over the next time: so a start on a full disk needs no room. */
class ProbeImage implements AsyncDisposable {
  readonly path: string;
  readonly metadataPath: string;
  readonly dataPath: string;
  readonly target: string;
  readonly #whole: ProbeFile;
  readonly #data: ProbeFile;

  private constructor(directory: string, whole: ProbeFile, data: ProbeFile) {
    this.path = join(directory, "image");
    this.metadataPath = join(directory, "metadata");
    this.dataPath = join(directory, "data");
    this.target = join(directory, "mnt");
    this.#whole = whole;
    this.#data = data;
  }

  static async make(parent: string): Promise<ProbeImage> {
    const directory = join(parent, "probe");
    const target = join(directory, "mnt");
    // a predecessor that was killed while it probed
    while (findMount(readMountInfo(), target) !== undefined) await unmountAsync(target, UnmountFlag.detach);
    mkdirSync(target, { recursive: true, mode: 0o700 });
    const tree = helloTree();
    const uuid = new Uint8Array(16).fill(1);
    const hello = Buffer.from(HELLO);
    const layout = layoutLazy(tree, { uuid });
    const data = { offset: layout.placement.fileOffset[0]!, bytes: hello };
    const whole = openProbe(join(directory, "image"), layout.size, [...layout.parts, data]);
    const apart = layoutDevices(tree, [{ tag: "probe", size: BLOCK_SIZE }], { uuid });
    closeSync(openProbe(join(directory, "metadata"), apart.size, apart.parts).fd);
    return new ProbeImage(
      directory,
      whole,
      openProbe(join(directory, "data"), BLOCK_SIZE, [{ offset: 0, bytes: hello }]),
    );
  }

  serve(server: HoleServer): void {
    const add = (nodeid: number, name: string, { fd, size }: ProbeFile) => {
      const fillMap = new Bitmap(size / BLOCK_SIZE);
      fillMap.setRange(0, fillMap.length);
      server.addFile({ nodeid, name, size, fd, fillMap, ensure: async () => undefined });
    };
    add(PROBE_NODEID, PROBE_NAME, this.#whole);
    add(PROBE_DATA_NODEID, PROBE_DATA_NAME, this.#data);
  }

  async readThrough(request: Parameters<typeof mountErofs>[0]): Promise<void> {
    await mountErofs(request);
    try {
      const text = await readFile(join(this.target, "hello.txt"), "utf8");
      if (text !== HELLO) throw new HeadstartError("HS_MOUNT", { what: "the probe image shows other bytes" });
    } finally {
      await unmountAsync(this.target);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    closeSync(this.#whole.fd);
    closeSync(this.#data.fd);
  }
}

interface ProbeFile {
  readonly fd: number;
  readonly size: number;
}

function openProbe(path: string, size: number, parts: readonly { offset: number; bytes: Uint8Array }[]): ProbeFile {
  const fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
  ftruncateSync(fd, size);
  for (const part of parts) writeFully(fd, part.bytes, part.offset);
  return { fd, size };
}

function helloTree(): FileTree {
  const root = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 };
  const builder = new FileTreeBuilder(root);
  const segments = [{ fileOffset: 0, length: HELLO.length, address: 0 }];
  const file = { ...root, mode: 0o644, type: FileType.regular, size: HELLO.length, segments };
  builder.addName(0, Buffer.from("hello.txt"), builder.addInode(file));
  return builder.finish();
}
