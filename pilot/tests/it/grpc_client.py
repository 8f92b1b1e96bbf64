"""gRPC's own xDS client, and the servers that it calls.

Prints the ports of two servers, `v1` and `v2`; then, for each line `PATH COUNT` on standard input, makes COUNT calls of PATH on
`xds:///TARGET` (the first argument) and prints how often each server answered, or the status, as JSON.
"""

import json
import sys
import time
from collections import Counter
from concurrent import futures

import grpc


class Echo(grpc.GenericRpcHandler):
    """Answers with its name; methods that are called Slow take their time."""

    def __init__(self, name):
        self.name = name.encode()

    def service(self, details):
        def answer(_request, _context):
            if details.method.endswith("/Slow"):
                time.sleep(2)
            return self.name

        return grpc.unary_unary_rpc_method_handler(answer)


def start(name):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers((Echo(name),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


servers = [start("v1"), start("v2")]
print(json.dumps([port for _, port in servers]), flush=True)
channel = None
for line in sys.stdin:
    path, count = line.split()
    # The client takes its configuration from $GRPC_XDS_BOOTSTRAP when the first channel is made.
    channel = channel or grpc.insecure_channel("xds:///" + sys.argv[1])
    call = channel.unary_unary(path)
    answers = Counter()
    for _ in range(int(count)):
        try:
            answers[call(b"", wait_for_ready=True, timeout=30).decode()] += 1
        except grpc.RpcError as error:
            answers[error.code().name] += 1
    print(json.dumps(answers), flush=True)
