// lookup prints the IPv4 addresses of a name, by c-ares, and how long that took.
const dns = require('dns');
const begin = Date.now();
dns.resolve4(process.argv[2], (err, addresses) => {
	console.log(`took ${Date.now() - begin} ms`);
	for (const address of addresses || []) console.log(address);
	process.exitCode = err ? 2 : 0;
});
