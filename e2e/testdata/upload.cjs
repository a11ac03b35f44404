// Sends a body in chunks through a proxy and prints the status of the answer.
// usage: node upload.cjs http|undici PROXY-HOST PROXY-PORT URL BYTES
const { Readable } = require("stream");
const [client, host, port, url, size] = process.argv.slice(2);
const block = Buffer.alloc(16384, "b");
function* blocks() {
  for (let n = 0; n < Number(size); n += block.length) yield block;
}
const body = Readable.from(blocks());
if (client === "http") {
  const request = require("http").request({ host, port, path: url, method: "POST" }, (response) => {
    console.log(response.statusCode);
    process.exit(0);
  });
  body.pipe(request);
} else {
  const { Client } = require("undici");
  new Client(`http://${host}:${port}`).request({ path: url, method: "POST", body }).then((response) => {
    console.log(response.statusCode);
    process.exit(0);
  });
}
