import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { rootCertificates } from "node:tls";
import { scratch } from "../testing.ts";
import { machineAuthorities } from "./authorities.ts";

test("only what Node does not know by itself is taken from the first bundle that exists", async () => {
  const own = "-----BEGIN CERTIFICATE-----\nMIIBOWN\n-----END CERTIFICATE-----";
  using folder = await scratch({
    "bundle.crt": `# comment\n${rootCertificates[0]}\n\n${own}\n${rootCertificates[1]}\n`,
    "second.crt": own,
  });
  const path = (name: string) => join(folder.path, name);
  assert.deepEqual(await machineAuthorities([path("none"), path("bundle.crt"), path("second.crt")]), [own]);
  assert.deepEqual(await machineAuthorities([path("none")]), []);
});
