/** A root, and a hole server of this process over a FUSE mount, for tests of mounts. */

import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HoleServer } from "../../src/fuse/hole-server.ts";
import { MountFlag, mount } from "../../src/linux/mount.ts";
import { isUnder, readMountInfo } from "../../src/linux/mountinfo.ts";
import { type Ladder, probeLadder } from "../../src/mount/ladder.ts";
import { LayerMounts } from "../../src/mount/layers.ts";
import { teardown } from "../../src/mount/teardown.ts";

/** A root, a state directory with a FUSE mount as the supervisor makes it, and a hole server in this process. */
export class MountPlace implements AsyncDisposable {
  readonly base = mkdtempSync(join(tmpdir(), "headstart-mounts-"));
  readonly root = join(this.base, "root");
  readonly state = join(this.base, "state");
  /** Closed when all is unmounted. */
  readonly fds: number[] = [];
  fd = -1;
  server!: HoleServer;

  static async make(): Promise<MountPlace> {
    const place = new MountPlace();
    mkdirSync(join(place.root, "layers"), { recursive: true });
    place.mountFuse();
    await place.serve();
    return place;
  }

  mountFuse(): void {
    mkdirSync(join(this.state, "fuse"), { recursive: true });
    for (const name of ["connection.json", "journal"]) rmSync(join(this.state, name), { force: true });
    this.fd = openSync("/dev/fuse", "r+");
    this.fds.push(this.fd);
    const data = `fd=${this.fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=1048576`;
    mount({
      source: "headstart",
      target: join(this.state, "fuse"),
      type: "fuse.headstart",
      flags: MountFlag.noSuid,
      data,
    });
  }

  async serve(onUnknownFile: (nodeid: number) => void = () => {}): Promise<void> {
    this.server = await HoleServer.open({ fd: this.fd, stateDirectory: this.state, onUnknownFile });
    await this.server.start();
  }

  probe(backing: "auto" | "file" | "loop" = "auto"): Promise<Ladder> {
    return probeLadder({ server: this.server, directory: this.root, backing });
  }

  async mounts(ladder: Ladder): Promise<LayerMounts> {
    return await LayerMounts.open({ directory: join(this.root, "l"), server: this.server, ladder });
  }

  /** Mount points of this place, without FUSE itself. */
  mounted(): string[] {
    return readMountInfo()
      .filter((each) => isUnder(each.mountPoint, this.base) && each.mountPoint !== join(this.state, "fuse"))
      .map((each) => each.mountPoint.slice(this.root.length + 1));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server[Symbol.asyncDispose]();
    await teardown([this.root, this.state], { force: true });
    for (const fd of this.fds) closeSync(fd);
    rmSync(this.base, { recursive: true });
  }
}
