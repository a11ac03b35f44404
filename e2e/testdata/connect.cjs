// Opens tunnels on streams of one HTTP/2 connection to a proxy, all at once, and sends a
// request through each over TLS. Prints a line for each destination: what its origin
// answers, or the status, the Proxy-Status and the body of a refusal.
// usage: node connect.cjs PROXY-URL PROXY-CA CERTIFICATE KEY ORIGIN-CA HOST:PORT...
const fs = require("fs");
const http2 = require("http2");
const https = require("https");
const tls = require("tls");
const [proxy, ca, cert, key, originCA, ...targets] = process.argv.slice(2);
const read = (file) => fs.readFileSync(file);
const session = http2.connect(proxy, { ca: read(ca), cert: read(cert), key: read(key) });
session.on("error", (error) => console.log(`session: ${error}`));
function text(stream) {
  return new Promise((resolve, reject) => {
    let all = "";
    stream.setEncoding("utf8").on("data", (part) => (all += part));
    stream.on("end", () => resolve(all)).on("error", reject);
  });
}
function connect(target) {
  return new Promise((resolve, reject) => {
    const stream = session.request({ ":method": "CONNECT", ":authority": target });
    stream.on("error", reject).on("response", (head) => resolve([stream, head]));
  });
}
async function ask(target) {
  const [stream, head] = await connect(target);
  if (head[":status"] !== 200) {
    return `${head[":status"]} ${head["proxy-status"]} ${(await text(stream)).split("\n")[0]}`;
  }
  const socket = tls.connect({ socket: stream, servername: target.split(":")[0], ca: read(originCA) });
  const answer = await new Promise((resolve, reject) => {
    https.get({ createConnection: () => socket, headers: { Host: target } }, resolve).on("error", reject);
  });
  const body = await text(answer);
  stream.close();
  return body;
}
(async () => {
  for (const line of await Promise.all(targets.map((target) => ask(target).catch(String)))) console.log(line);
  session.close();
})();
