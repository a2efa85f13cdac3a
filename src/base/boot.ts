/** Which boot of the machine this is: what is not durable is believed only within one. */

import { readFileSync } from "node:fs";

/** As the kernel says; HEADSTART_BOOT_ID says otherwise, for tests of what a reboot leaves. */
export function bootId(): string {
  return process.env.HEADSTART_BOOT_ID ?? readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim();
}
