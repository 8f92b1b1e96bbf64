"""Both ends of Mixer's API of the 1.4 line, by its methods, field numbers and first words alone: nothing here is made from our
descriptors or our dictionary.

    foreign.py client PORT   asks and tells a Mixer what is below; prints what it heard, as JSON
    foreign.py server        prints its port, then what each Check asked, as JSON
"""

import json
import sys
from concurrent import futures

import grpc

CHECK = "/istio.mixer.v1.Mixer/Check"
REPORT = "/istio.mixer.v1.Mixer/Report"
WORDS = (
    "source.ip source.port source.name source.uid source.namespace source.labels source.user target.ip target.port "
    "target.service target.name target.uid target.namespace target.labels target.user request.headers request.id "
    "request.path request.host request.method request.reason request.referer request.scheme request.size request.time "
    "request.useragent response.headers response.size response.time response.duration response.code"
).split()
# The server says nothing by a word that we have not said we know.
KNOWN = len(WORDS)


def varint(number):
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out + bytes([number]))


def field(number, value):
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def signed(number):
    return number * 2 if number >= 0 else -number * 2 - 1


def entry(number, key, value):
    return field(number, field(1, key) + field(2, value))


def parse(data):
    """The fields of a message, by number: a list of numbers or bytes each."""
    fields, at = {}, 0

    def take():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = take()
        value = take()
        if tag & 7 == 2:
            at, value = at + value, data[at : at + value]
        else:
            assert tag & 7 == 0, f"wire type {tag & 7}"
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def first(fields, number, default=0):
    return fields.get(number, [default])[0]


def text(fields, number):
    return first(fields, number, b"").decode()


def word(number, words):
    number = number >> 1 ^ -(number & 1)
    return WORDS[number] if number >= 0 else words[-number - 1].decode()


class Encoder:
    """Compressed attributes, with the global words below `count`."""

    def __init__(self, count=KNOWN):
        self.count, self.words, self.body = count, [], b""

    def index(self, name):
        if name in WORDS[: self.count]:
            return signed(WORDS.index(name))
        if name not in self.words:
            self.words.append(name)
        return signed(-self.words.index(name) - 1)

    def put(self, name, value):
        key = self.index(name)
        if isinstance(value, str):
            self.body += entry(2, key, self.index(value))
        elif isinstance(value, int):
            self.body += entry(3, key, value)
        elif isinstance(value, bytes):
            self.body += entry(8, key, value)
        else:
            inner = b"".join(entry(1, self.index(k), self.index(v)) for k, v in value.items())
            self.body += entry(9, key, inner)

    def message(self):
        return b"".join(field(1, each) for each in self.words) + self.body


def encoded(attributes, count=KNOWN):
    encoder = Encoder(count)
    for name, value in attributes.items():
        encoder.put(name, value)
    return encoder.message()


def decoded(data):
    fields = parse(data)
    words, found = fields.get(1, []), {}
    for each in map(parse, fields.get(2, [])):
        found[word(first(each, 1), words)] = word(first(each, 2), words)
    for each in map(parse, fields.get(3, [])):
        found[word(first(each, 1), words)] = first(each, 2)
    for each in map(parse, fields.get(8, [])):
        found[word(first(each, 1), words)] = list(first(each, 2, b""))
    for each in map(parse, fields.get(9, [])):
        pairs = map(parse, parse(first(each, 2, b"")).get(1, []))
        pairs = {word(first(pair, 1), words): word(first(pair, 2), words) for pair in pairs}
        found[word(first(each, 1), words)] = pairs
    return found


def referenced(data):
    fields = parse(data)
    words, found = fields.get(1, []), []
    for each in map(parse, fields.get(2, [])):
        key = first(each, 4)
        key = f"[{word(key, words)}]" if key else ""
        found.append({1: "-", 2: ""}[first(each, 2)] + word(first(each, 1), words) + key)
    return sorted(found)


def client(port):
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def call(path, message):
        try:
            return channel.unary_unary(path)(message, timeout=60, wait_for_ready=True)
        except grpc.RpcError as error:
            return error.code().name

    def check(attributes, count=KNOWN, quota=b""):
        message = field(1, encoded(attributes, count)) + field(2, count) + field(3, "once") + quota
        answer = call(CHECK, message)
        if isinstance(answer, str):
            return answer
        answer = parse(answer)
        verdict = parse(answer[2][0])
        status = parse(first(verdict, 1, b""))
        directive = parse(first(verdict, 6, b""))
        operations = map(parse, directive.get(1, []))
        quotas = {}
        for each in map(parse, answer.get(3, [])):
            result = parse(first(each, 2, b""))
            seconds = first(parse(first(result, 1, b"")), 1)
            quotas[text(each, 1)] = {"granted": first(result, 2), "seconds": seconds, "referenced": referenced(first(result, 5, b""))}
        return {
            "code": first(status, 1),
            "message": text(status, 2),
            "seconds": first(parse(first(verdict, 2, b"")), 1),
            "uses": first(verdict, 3),
            "referenced": referenced(first(verdict, 5, b"")),
            "headers": [[text(each, 1), text(each, 2), first(each, 3)] for each in operations],
            "quotas": quotas,
        }

    me = {"source.name": "me", "source.ip": bytes([10, 0, 0, 1]), "request.headers": {"x-user": "admin", "cookie": "a"}, "request.size": 500}
    quota = field(4, field(1, "limit") + field(2, field(1, 5) + field(2, 1)))
    evil = dict(me, **{"source.name": "evil"})
    # The second of the sets is told as what is different in it; both have their words from the request.
    words = b"".join(field(2, each) for each in ["alice", "bob"])
    sets = [entry(2, signed(2), signed(-1)) + entry(3, signed(23), 7), entry(2, signed(2), signed(-2))]
    report = b"".join(field(1, each) for each in sets) + words + field(3, KNOWN)
    heard = {
        "good": check(me, quota=quota),
        "evil": check(evil),
        "without the dictionary": check(evil, count=0),
        "too many words": check(me, count=300),
        "report": list(call(REPORT, report)),
        "report of nothing": list(call(REPORT, b"")),
    }
    print(json.dumps(heard))


def answer(request, context):
    fields = parse(request)
    quotas = {}
    for each in map(parse, fields.get(4, [])):
        params = parse(first(each, 2, b""))
        quotas[text(each, 1)] = [first(params, 1), bool(first(params, 2))]
    asked = {"attributes": decoded(fields[1][0]), "words": first(fields, 2), "id": text(fields, 3), "quotas": quotas}
    print(json.dumps(asked), flush=True)
    matches = field(2, field(1, signed(2)) + field(2, 2))
    matches += field(2, field(1, signed(15)) + field(2, 1) + field(4, signed(-1)))
    operation = field(1, "x-team") + field(2, "red") + field(3, 2)
    directive = field(1, operation) + field(3, 302) + field(4, "elsewhere")
    verdict = field(1, field(1, 7) + field(2, "not you")) + field(2, field(1, 5)) + field(3, 9)
    verdict += field(5, field(1, "x-user") + matches) + field(6, directive)
    quota = field(1, field(1, 2)) + field(2, 3)
    return field(2, verdict) + field(3, field(1, "limit") + field(2, quota))


class Mixer(grpc.GenericRpcHandler):
    def service(self, details):
        answers = {CHECK: answer, REPORT: lambda request, context: b""}
        found = answers.get(details.method)
        return found and grpc.unary_unary_rpc_method_handler(found)


def server():
    mixer = grpc.server(futures.ThreadPoolExecutor(2))
    mixer.add_generic_rpc_handlers([Mixer()])
    port = mixer.add_insecure_port("127.0.0.1:0")
    mixer.start()
    print(port, flush=True)
    mixer.wait_for_termination()


if sys.argv[1] == "client":
    client(sys.argv[2])
else:
    server()
