// Sends bodies in chunks through a proxy, each over a connection of its own, and prints
// the status of each answer.
// usage: node upload.cjs http|undici PROXY-HOST PROXY-PORT [URL BYTES]...
const http = require("http");
const { Readable } = require("stream");
const [client, host, port, ...uploads] = process.argv.slice(2);
const block = Buffer.alloc(16384, "b");
function* blocks(size) {
  for (let n = 0; n < size; n += block.length) yield block;
}
function send(url, body) {
  if (client === "undici") {
    const { Client } = require("undici");
    return new Client(`http://${host}:${port}`).request({ path: url, method: "POST", body });
  }
  return new Promise((resolve, reject) => {
    const agent = new http.Agent(http.globalAgent.options);
    const request = http.request({ agent, host, port, path: url, method: "POST" }, resolve);
    request.on("error", reject);
    body.pipe(request);
  });
}
(async () => {
  for (let i = 0; i < uploads.length; i += 2) {
    const response = await send(uploads[i], Readable.from(blocks(Number(uploads[i + 1]))));
    console.log(response.statusCode);
  }
  process.exit(0);
})();
