"""Print a line and ask a server's /health until standard input ends, then print the slowest answer's seconds: ADDRESS.

In its own process: what a test does itself, such as parsing a long answer, must not count as the server's time.
"""

import http.client
import select
import sys
import time

slowest = 0.0
print("asking", flush=True)
while not select.select([sys.stdin], [], [], 0.02)[0]:
    began = time.monotonic()
    connection = http.client.HTTPConnection(sys.argv[1], timeout=300)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()
    slowest = max(slowest, time.monotonic() - began)
print(slowest)
