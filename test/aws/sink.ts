/** Takes bytes and drops them, as a process of its own: sends its port, answers one byte for every 512 KiB of a connection, and ends with its parent. What is left of a server when it does nothing. */

import { type AddressInfo, createServer } from "node:net";
import { BLOCK } from "./world.ts";

const server = createServer((socket) => {
  let bytes = 0;
  socket.on("data", (chunk: Buffer) => {
    bytes += chunk.byteLength;
    for (; bytes >= BLOCK; bytes -= BLOCK) socket.write("1");
  });
  socket.on("error", () => socket.destroy());
});
process.on("disconnect", () => process.exit());
server.listen(0, "127.0.0.1", () => process.send?.((server.address() as AddressInfo).port));
