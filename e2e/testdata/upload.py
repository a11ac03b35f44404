"""Sends a body in chunks through a proxy, all of it before it reads the answer.

usage: upload.py http|https PROXY-HOST PROXY-PORT URL BYTES; https takes
ca.pem, builder.pem and builder_key.pem in the current directory.
"""
import http.client
import ssl
import sys

scheme, host, port, url, size = sys.argv[1:]
if scheme == "https":
    context = ssl.create_default_context(cafile="ca.pem")
    context.load_cert_chain("builder.pem", "builder_key.pem")
    connection = http.client.HTTPSConnection(host, int(port), timeout=20, context=context)
else:
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
block = b"b" * 16384
chunks = (block for _ in range(int(size) // len(block)))
connection.request("POST", url, body=chunks, headers={"Transfer-Encoding": "chunked"}, encode_chunked=True)
print(connection.getresponse().status)
