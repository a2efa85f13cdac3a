import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import fc from "fast-check";
import { makePlainLayer, noise } from "../../test/fakes/plain-layer.ts";
import { Bitmap } from "../base/bitmap.ts";
import { isHeadstartError } from "../base/errors.ts";
import { layoutLazy } from "../erofs/write.ts";
import { readPlacement, writePlacement } from "./placement-file.ts";
import { readTree, sameTree, writeTree } from "./tree-file.ts";
import { UnitLog } from "./unit-log.ts";

const directory = mkdtempSync(join(tmpdir(), "section-test-"));
after(() => rmSync(directory, { recursive: true }));
const file = (name: string) => join(directory, name);

const { tree } = makePlainLayer(
  [1, 5000, 0, 70_000].map((size, at) => ({ name: `f${at}`, data: noise(size, at) })),
).lazy;
const { placement, size: imageSize } = layoutLazy(tree, { uuid: new Uint8Array(16) });

test("a tree and a placement read back as they were, over shared memory", async () => {
  await writeTree(file("tree"), tree);
  const back = await readTree(file("tree"));
  assert.deepEqual(back, tree);
  assert.ok(sameTree(back, tree));
  assert.ok(back.bytes.buffer instanceof SharedArrayBuffer);
  await writePlacement(file("placement"), { placement, imageSize });
  assert.deepEqual(await readPlacement(file("placement")), { placement, imageSize });
});

test("a damaged, cut or foreign file is a typed error", async () => {
  await writeTree(file("tree"), tree);
  await writePlacement(file("placement"), { placement, imageSize });
  const cases = [
    ["tree", readTree],
    ["placement", readPlacement],
  ] as const;
  for (const [name, read] of cases) {
    const whole = readFileSync(file(name));
    await fc.assert(
      fc.asyncProperty(fc.nat(whole.byteLength - 1), fc.nat(254), fc.boolean(), async (at, change, cut) => {
        const bytes = Buffer.from(cut ? whole.subarray(0, at) : whole);
        if (!cut) bytes[at] = (bytes[at]! + 1 + change) % 256;
        writeFileSync(file("damaged"), bytes);
        await assert.rejects(read(file("damaged")), (error) =>
          isHeadstartError(error, "HS_MALFORMED", "HS_TRUNCATED", "HS_DIGEST_MISMATCH", "HS_LIMIT"),
        );
      }),
      { numRuns: 60 },
    );
  }
});

test("a unit log keeps what was persisted, for its own boot and its own table", () => {
  const boot = "11111111-2222-3333-4444-555555555555";
  const path = file("units");
  const log = UnitLog.create(path, 20, boot);
  const bitmap = new Bitmap(20);
  for (const unit of [0, 9, 19]) {
    bitmap.set(unit);
    log.persist(bitmap, unit, unit + 1);
  }
  log.close();
  const again = UnitLog.open(path, 20, boot)!;
  assert.deepEqual([...again.filled], [...bitmap.bytes]);
  again.log.close();
  assert.equal(UnitLog.open(path, 20, "99999999-2222-3333-4444-555555555555"), null);
  assert.throws(
    () => UnitLog.open(path, 21, boot),
    (error) => isHeadstartError(error, "HS_MALFORMED"),
  );
  writeFileSync(path, readFileSync(path).subarray(0, 33));
  assert.throws(
    () => UnitLog.open(path, 20, boot),
    (error) => isHeadstartError(error, "HS_TRUNCATED"),
  );
});
