/** A small initramfs: busybox, the programs named with the libraries they load, kernel modules, and a script as /init. */

import { execFileSync } from "node:child_process";
import { existsSync, globSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";

export interface InitramfsParts {
  /** The unpacked package of a kernel. */
  readonly kernel: string;
  /** Modules by name, in the order in which they are loaded; those that are built in are left out. */
  readonly modules: readonly string[];
  /** Whole paths of this machine. */
  readonly programs: readonly string[];
  /** Shell, run by busybox as the first process: modules are loaded, /proc, /sys and /dev are there. */
  readonly script: string;
}

const BUSYBOX = "/bin/busybox";

/** The bytes of a cpio archive, as the kernel takes it. */
export function initramfs({ kernel, modules, programs, script }: InitramfsParts): Uint8Array {
  const archive = new Cpio();
  const files = new Set([BUSYBOX, ...programs.flatMap((program) => [program, ...librariesOf(program)])]);
  for (const path of files) archive.file(path, readFileSync(path), 0o755);
  const loads = modules.flatMap((name) => {
    const [path] = globSync(join(kernel, `lib/modules/*/kernel/**/${name}.ko`));
    if (path === undefined) return [];
    archive.file(`/modules/${basename(path)}`, readFileSync(path), 0o644);
    return [`busybox insmod /modules/${basename(path)} || echo "no ${name}"`];
  });
  const init = `#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /mnt
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
${loads.join("\n")}
${script}
poweroff -f
`;
  archive.file("/init", Buffer.from(init), 0o755);
  return archive.finish();
}

/** What the dynamic linker would load, and the linker itself. */
function librariesOf(program: string): string[] {
  const text = execFileSync("ldd", [program], { encoding: "utf8" });
  return [...text.matchAll(/(\/\S+) \(0x/g)].map((match) => match[1]!).filter((path) => existsSync(path));
}

/** The "new ASCII" format: a header of hexadecimal fields, name and data each padded to 4. */
class Cpio {
  readonly #parts: Uint8Array[] = [];
  readonly #directories = new Set<string>();
  #inode = 1;

  file(path: string, bytes: Uint8Array, mode: number): void {
    const parts = path.split("/").filter((part) => part !== "");
    for (let depth = 1; depth < parts.length; depth++) {
      const directory = parts.slice(0, depth).join("/");
      if (this.#directories.has(directory)) continue;
      this.#directories.add(directory);
      this.#entry(directory, new Uint8Array(0), 0o040755);
    }
    this.#entry(parts.join("/"), bytes, 0o100000 | mode);
  }

  finish(): Uint8Array {
    this.#entry("TRAILER!!!", new Uint8Array(0), 0);
    return Buffer.concat(this.#parts);
  }

  #entry(name: string, bytes: Uint8Array, mode: number): void {
    // inode, mode, uid, gid, links, mtime, size, device (2), its own device (2), name length, check
    const fields = [this.#inode++, mode, 0, 0, 1, 0, bytes.byteLength, 0, 0, 0, 0, name.length + 1, 0];
    const header = `070701${fields.map((field) => field.toString(16).padStart(8, "0")).join("")}${name}\0`;
    this.#parts.push(padded(Buffer.from(header)), padded(bytes));
  }
}

function padded(bytes: Uint8Array): Uint8Array {
  return Buffer.concat([bytes, Buffer.alloc((4 - (bytes.byteLength % 4)) % 4)]);
}
