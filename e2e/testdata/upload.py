"""Sends bodies in chunks through a proxy, each over a connection of its own and all of
it before it reads the answer. Prints the status of each answer.

usage: upload.py http|https PROXY-HOST PROXY-PORT [URL BYTES]...; https takes
ca.pem, builder.pem and builder_key.pem in the current directory.
"""
import http.client
import ssl
import sys

scheme, host, port, *uploads = sys.argv[1:]
if scheme == "https":
    context = ssl.create_default_context(cafile="ca.pem")
    context.load_cert_chain("builder.pem", "builder_key.pem")
block = b"b" * 16384
for url, size in zip(uploads[::2], uploads[1::2]):
    if scheme == "https":
        connection = http.client.HTTPSConnection(host, int(port), timeout=20, context=context)
    else:
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
    chunks = (block for _ in range(int(size) // len(block)))
    connection.request("POST", url, body=chunks, headers={"Transfer-Encoding": "chunked"}, encode_chunked=True)
    print(connection.getresponse().status)
    connection.close()
