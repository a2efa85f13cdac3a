/** The AWS of the tests as a process of its own, for whoever measures: forked with options as JSON; sends its URL and a client's environment, and ends with its parent. */

import { type AwsOptions, AwsServer } from "./server.ts";

const server = await AwsServer.start(JSON.parse(process.argv[2] ?? "{}") as AwsOptions);
for (const end of ["disconnect", "SIGTERM"]) process.on(end, () => process.exit());
process.on("exit", () => server.world[Symbol.dispose]());
process.send?.({ url: server.url, env: server.environment(server.world.addKey()) });
