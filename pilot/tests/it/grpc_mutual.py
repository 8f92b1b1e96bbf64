"""gRPC's own xDS server and client, both with the credentials that xDS names.

usage: grpc_mutual.py ADDRESS:PORT, where the server listens. Prints a line when it has started; then, for each target on its input,
makes one call and prints who the server says has called, or the status, as JSON. The server serves nothing before xDS has told it
what, some time after its start: the first call waits for that.
"""

import json
import sys
from concurrent import futures

import grpc
import grpc.experimental


class WhoIsThere(grpc.GenericRpcHandler):
    """Answers with the identity of its caller."""

    def service(self, details):
        def answer(_request, context):
            return b",".join(context.auth_context().get("peer_spiffe_id", []))

        return grpc.unary_unary_rpc_method_handler(answer)


server = grpc.server(futures.ThreadPoolExecutor(max_workers=4), xds=True)
server.add_generic_rpc_handlers((WhoIsThere(),))
server.add_secure_port(sys.argv[1], grpc.xds_server_credentials(grpc.insecure_server_credentials()))
server.start()
print(json.dumps("started"), flush=True)
for calls, target in enumerate(sys.stdin):
    target = target.strip()
    if target.startswith("xds:"):
        credentials = grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials())
        channel = grpc.secure_channel(target, credentials)
    else:
        channel = grpc.insecure_channel(target)
    try:
        said = channel.unary_unary("/test.Who/IsThere")(b"", timeout=30, wait_for_ready=calls == 0).decode()
    except grpc.RpcError as error:
        said = error.code().name
    channel.close()
    print(json.dumps(said), flush=True)
