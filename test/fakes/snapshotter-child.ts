/** A snapshotter in a process of its own, for tests that kill it: `node snapshotter-child.ts ROOT [FD]`. With a descriptor it serves
 * that listening socket, as systemd would hand it over. Its provider has one layer and offers it for every extraction. */

import { join } from "node:path";
import { FakeLayerProvider } from "./layer-provider.ts";
import { startSnapshotter } from "./snapshots-client.ts";

const root = process.argv[2]!;
const provider = new FakeLayerProvider(join(root, "layers"));
const layer = provider.addLayer();
provider.decide = () => ({ kind: "lazy", layer });
const fd = process.argv[3];
await startSnapshotter(root, { provider, ...(fd === undefined ? {} : { fd: Number(fd) }) });
process.stdout.write("ready\n");
