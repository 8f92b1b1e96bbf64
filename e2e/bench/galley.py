#!/usr/bin/env python3
"""What Galley costs while it serves: many resources, one change a second, many MCP sinks.

    cargo build --release
    pip install grpcio grpcio-tools googleapis-common-protos
    e2e/bench/galley.py [--galley target/release/galley] [--resources 50000] [--sinks 20] [--seconds 30]

The sinks are Python's grpcio with the messages compiled from proto/protos, so that this is also a test of the protocol
against somebody else's gRPC. Prints the time until all sinks have everything, then Galley's CPU share and the time from
a file's change to the last sink's knowing it.
"""

import argparse, importlib, os, pathlib, queue, socket, subprocess, sys, tempfile, threading, time

import grpc
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
COLLECTION = "istio/networking/v1alpha3/virtualservices"
PER_FILE = 100


def modules(folder):
    """The MCP messages, from the project's own definitions."""
    common = next(p for p in map(pathlib.Path, sys.path) if (p / "google/rpc/status.proto").exists())
    tools = pathlib.Path(protoc.__file__).parent / "_proto"
    files = ["istio/mcp/v1alpha1/%s.proto" % n for n in ("mcp", "metadata", "resource")]
    args = ["protoc", f"-I{ROOT}/proto/protos", f"-I{common}", f"-I{tools}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    if protoc.main(args + files):
        sys.exit("the messages do not compile")
    sys.path.insert(0, str(folder))
    name = "istio.mcp.v1alpha1.mcp_pb2"
    return importlib.import_module(name), importlib.import_module(name + "_grpc")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def route(name, tick):
    return (
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n"
        f"metadata: {{name: {name}, namespace: bench}}\n"
        f"spec: {{hosts: [{name}.example], http: [{{timeout: {1 + tick % 1000}s, route: [{{destination: {{host: {name}}}}}]}}]}}\n"
    )


def write(folder, index, tick):
    """One file of resources, of which the first carries the tick; whole, by rename."""
    names = range(index * PER_FILE, (index + 1) * PER_FILE)
    text = "---\n".join(route(f"r{n}", tick if n == names[0] else 0) for n in names)
    path = folder / f"{index:05}.yaml"
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").rename(path)


class Sink:
    """Subscribes, accepts everything, and tells when a resource came."""

    def __init__(self, mcp, stub, news, number):
        self.mcp, self.news, self.number = mcp, news, number
        self.names, self.updates = set(), 0
        self.requests = queue.Queue()
        self.ask("")
        self.responses = stub.EstablishResourceStream(iter(self.requests.get, None))
        threading.Thread(target=self.run, daemon=True).start()

    def ask(self, nonce):
        node = self.mcp.SinkNode(id=f"python-{self.number}")
        self.requests.put(self.mcp.RequestResources(sink_node=node, collection=COLLECTION, response_nonce=nonce, incremental=True))

    def run(self):
        try:
            for response in self.responses:
                if not response.incremental:
                    self.names.clear()
                self.names.update(r.metadata.name for r in response.resources)
                self.names.difference_update(response.removed_resources)
                self.updates += 1
                self.news.put((self.number, [r.metadata.name for r in response.resources] if response.incremental else None, len(self.names)))
                self.ask(response.nonce)
        except grpc.RpcError as error:
            self.news.put((self.number, error, 0))


def cpu(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid):
    return next(int(l.split()[1]) // 1024 for l in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if l.startswith("VmRSS"))


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--galley", default=str(ROOT / "target/release/galley"))
    a.add_argument("--resources", type=int, default=50000)
    a.add_argument("--sinks", type=int, default=20)
    a.add_argument("--seconds", type=int, default=30)
    o = a.parse_args()
    files = max(1, o.resources // PER_FILE)
    with tempfile.TemporaryDirectory() as d:
        work = pathlib.Path(d)
        config, code = work / "config", work / "messages"
        config.mkdir(), code.mkdir()
        mcp, stubs = modules(code)
        for index in range(files):
            write(config, index, 0)
        port, monitoring = free_port(), free_port()
        galley = subprocess.Popen([
            o.galley, "server", "--configPath", str(config), "--meshConfigFile", str(work / "mesh"), "--insecure=true",
            f"--server-address=tcp://127.0.0.1:{port}", "--enable-validation=false", f"--monitoringPort={monitoring}",
            "--data-dir", str(work / "data"), "--log_output_level=default:error"])
        try:
            measure(o, files, config, mcp, stubs, port, galley.pid)
        finally:
            began = time.monotonic()
            galley.terminate()
            galley.wait(20)
            print(f"ended in {time.monotonic() - began:.2f} s")


def measure(o, files, config, mcp, stubs, port, pid):
    news = queue.Queue()
    began = time.monotonic()
    options = [("grpc.max_receive_message_length", 1 << 30), ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(o.sinks)]
    for channel in channels:
        grpc.channel_ready_future(channel).result(60)
    sinks = [Sink(mcp, stubs.ResourceSourceStub(c), news, n) for n, c in enumerate(channels)]
    missing = set(range(o.sinks))
    while missing:
        number, what, count = news.get(timeout=120)
        if isinstance(what, Exception):
            sys.exit(f"sink {number}: {what}")
        if count >= files * PER_FILE:
            missing.discard(number)
    print(f"{files * PER_FILE} resources at {o.sinks} sinks after {time.monotonic() - began:.1f} s, "
          f"{cpu(pid):.2f} CPU-seconds, {resident(pid)} MiB")
    time.sleep(3)
    while not news.empty():
        news.get()
    delays, used, start = [], cpu(pid), time.monotonic()
    for tick in range(1, o.seconds + 1):
        index = tick * 37 % files
        changed = time.monotonic()
        write(config, index, tick)
        missing = set(range(o.sinks))
        while missing:
            number, names, _ = news.get(timeout=30)
            if isinstance(names, Exception):
                sys.exit(f"sink {number}: {names}")
            if names and f"bench/r{index * PER_FILE}" in names:
                missing.discard(number)
        delays.append(time.monotonic() - changed)
        time.sleep(max(0, start + tick - time.monotonic()))
    share = (cpu(pid) - used) / (time.monotonic() - start)
    delays.sort()
    print(f"{o.seconds} changes, one a second: {100 * share:.1f} % of a core, {resident(pid)} MiB; change to last sink "
          f"p50 {1000 * delays[len(delays) // 2]:.0f} ms, p99 {1000 * delays[min(len(delays) - 1, len(delays) * 99 // 100)]:.0f} ms")


main()
