/** A private containerd that unpacks images of given layers with its overlayfs snapshotter and mounts them, as an eager pull would. Needs root. */

import { type ChildProcess, execFile, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";

const run = promisify(execFile);

export class Unpacker implements AsyncDisposable {
  readonly directory = mkdtempSync(join(tmpdir(), "headstart-unpack-"));
  readonly #child: ChildProcess;
  readonly #mounts = new Set<string>();

  static async start(): Promise<Unpacker> {
    const unpacker = new Unpacker();
    for (let attempt = 0; attempt < 200; attempt++) {
      try {
        await unpacker.#ctr("version");
        return unpacker;
      } catch {
        await sleep(50);
      }
    }
    await unpacker[Symbol.asyncDispose]();
    throw new Error("containerd did not become ready");
  }

  private constructor() {
    const config = `version = 2
root = "${this.directory}/root"
state = "${this.directory}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "${this.#socket}"
[debug]
  address = "${this.directory}/debug.sock"
  level = "warn"
`;
    writeFileSync(join(this.directory, "config.toml"), config);
    this.#child = spawn("containerd", ["-c", join(this.directory, "config.toml")], { stdio: "ignore" });
  }

  get #socket(): string {
    return join(this.directory, "c.sock");
  }

  /** Puts the images into the content store; the reference of each is `image:INDEX`. `mediaType` of their layers: plain tar by default. */
  async import(
    images: readonly (readonly Uint8Array[])[],
    mediaType = "application/vnd.oci.image.layer.v1.tar",
  ): Promise<void> {
    const layout = join(this.directory, "layout");
    const blobs = join(layout, "blobs/sha256");
    mkdirSync(blobs, { recursive: true });
    const put = (bytes: Uint8Array, type: string) => {
      const hex = createHash("sha256").update(bytes).digest("hex");
      writeFileSync(join(blobs, hex), bytes);
      return { mediaType: type, digest: `sha256:${hex}`, size: bytes.byteLength };
    };
    const putJson = (value: unknown, type: string) => put(Buffer.from(JSON.stringify(value)), type);
    const manifests = images.map((layers, index) => {
      const diffIDs = layers.map((bytes) => `sha256:${createHash("sha256").update(bytes).digest("hex")}`);
      const config = { architecture: "amd64", os: "linux", rootfs: { type: "layers", diff_ids: diffIDs } };
      const manifest = {
        schemaVersion: 2,
        mediaType: "application/vnd.oci.image.manifest.v1+json",
        config: putJson(config, "application/vnd.oci.image.config.v1+json"),
        layers: layers.map((bytes) => put(bytes, mediaType)),
      };
      return {
        ...putJson(manifest, manifest.mediaType),
        platform: { architecture: "amd64", os: "linux" },
        annotations: { "org.opencontainers.image.ref.name": `${index}` },
      };
    });
    writeFileSync(join(layout, "index.json"), JSON.stringify({ schemaVersion: 2, manifests }));
    writeFileSync(join(layout, "oci-layout"), '{"imageLayoutVersion":"1.0.0"}');
    const archive = join(this.directory, "images.tar");
    await run("tar", ["-C", layout, "-cf", archive, "oci-layout", "index.json", "blobs"]);
    await this.#ctr("images", "import", "--no-unpack", "--base-name", "image", archive);
    rmSync(layout, { recursive: true });
    rmSync(archive);
  }

  /** Unpacks and mounts an image, calls `look` with the mount point, and unmounts it. A string: why containerd refuses it. */
  async look<T>(index: number, look: (mountPoint: string) => T): Promise<T | string> {
    const target = join(this.directory, `mount-${index}`);
    mkdirSync(target);
    try {
      await this.#ctr(
        "images",
        "mount",
        "--snapshotter",
        "overlayfs",
        "--platform",
        "linux/amd64",
        `image:${index}`,
        target,
      );
    } catch (error) {
      rmSync(target, { recursive: true });
      return String((error as { stderr?: string }).stderr ?? error).trim();
    }
    this.#mounts.add(target);
    try {
      return look(target);
    } finally {
      await this.#unmount(target);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const target of this.#mounts) await this.#unmount(target);
    const ended = new Promise((resolve) => this.#child.once("exit", resolve));
    if (this.#child.exitCode === null && this.#child.kill("SIGTERM")) await ended;
    const mounted = readFileSync("/proc/self/mounts", "utf8").split("\n");
    for (const line of mounted) {
      const target = line.split(" ")[1] ?? "";
      if (target.startsWith(`${this.directory}/`)) await run("umount", ["-l", target]);
    }
    if (existsSync(this.directory)) rmSync(this.directory, { recursive: true, force: true });
  }

  async #unmount(target: string): Promise<void> {
    await run("umount", [target]);
    this.#mounts.delete(target);
    rmSync(target, { recursive: true });
  }

  async #ctr(...args: string[]): Promise<string> {
    const { stdout } = await run("ctr", ["--address", this.#socket, "--namespace", "default", ...args], {
      maxBuffer: 1 << 24,
    });
    return stdout;
  }
}
