#!/usr/bin/env python3
"""What the soak's adapters talk to: an Open Policy Agent that always says yes, and a Fluentd that reads and forgets.

Usage: backends.py OPA_PORT FLUENTD_PORT
"""

import http.server
import socketserver
import sys
import threading


class Agent(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # The answer's head and body in one packet: the second would wait 40 ms for what the other side holds back.
    wbufsize = -1

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b'{"result": true}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Collector(socketserver.BaseRequestHandler):
    def handle(self):
        while self.request.recv(1 << 16):
            pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main():
    agent = Server(("127.0.0.1", int(sys.argv[1])), Agent)
    collector = Server(("127.0.0.1", int(sys.argv[2])), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    agent.serve_forever()


main()
