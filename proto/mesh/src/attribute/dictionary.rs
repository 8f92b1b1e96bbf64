//! The global word list of Mixer's attribute protocol (`mixer/v1/global_dictionary.yaml` of the 1.4 line): both peers know
//! it, so a message names a word by its position. The list only ever grows at its end.
//!
//! QUIRK: the list was once generated from raw YAML, so the quotes around 94, 111, 112 and 218 belong to the words.

/// How many leading words the oldest clients know.
pub const BASE_WORDS: usize = 111;

/// The words, in index order.
pub const WORDS: [&str; 222] = [
    // 0: the first attributes
    "source.ip",
    "source.port",
    "source.name",
    "source.uid",
    "source.namespace",
    "source.labels",
    "source.user",
    "target.ip",
    "target.port",
    "target.service",
    "target.name",
    "target.uid",
    "target.namespace",
    "target.labels",
    "target.user",
    "request.headers",
    "request.id",
    "request.path",
    "request.host",
    "request.method",
    "request.reason",
    "request.referer",
    "request.scheme",
    "request.size",
    "request.time",
    "request.useragent",
    "response.headers",
    "response.size",
    "response.time",
    "response.duration",
    "response.code",
    // 31: pseudo headers
    ":authority",
    ":method",
    ":path",
    ":scheme",
    ":status",
    // 36: header names
    "access-control-allow-origin",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "access-control-max-age",
    "access-control-request-method",
    "access-control-request-headers",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "accept",
    "access-control-allow",
    "age",
    "allow",
    // 50
    "authorization",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    // 66
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "last-modified",
    "link",
    "location",
    "max-forwards",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "refresh",
    "retry-after",
    "server",
    "set-cookie",
    "strict-transport-sec",
    "transfer-encoding",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
    // 90: header values
    "GET",
    "POST",
    "http",
    "envoy",
    "'200'",
    "Keep-Alive",
    "chunked",
    // 97
    "x-envoy-service-time",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-http-method-override",
    "x-request-id",
    "x-requested-with",
    // 104
    "application/json",
    "application/xml",
    "gzip",
    "text/html",
    "text/html; charset=utf-8",
    "text/plain",
    "text/plain; charset=utf-8",
    // 111: what came after the base dictionary
    "'0'",
    "'1'",
    "true",
    "false",
    "gzip, deflate",
    "max-age=0",
    "x-envoy-upstream-service-time",
    "x-envoy-internal",
    "x-envoy-expected-rq-timeout-ms",
    "x-ot-span-context",
    "x-b3-traceid",
    "x-b3-sampled",
    "x-b3-spanid",
    "tcp",
    // 125
    "connection.id",
    "connection.received.bytes",
    "connection.received.bytes_total",
    "connection.sent.bytes",
    "connection.sent.bytes_total",
    "connection.duration",
    "context.protocol",
    "context.timestamp",
    "context.time",
    // 134
    "0",
    "1",
    "200",
    "302",
    "400",
    "401",
    "403",
    "404",
    "409",
    "429",
    "499",
    "500",
    "501",
    "502",
    "503",
    "504",
    // 150
    "destination.ip",
    "destination.port",
    "destination.service",
    "destination.name",
    "destination.uid",
    "destination.namespace",
    "destination.labels",
    "destination.user",
    "source.service",
    // 159
    "api.service",
    "api.version",
    "api.operation",
    "api.protocol",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.api_key",
    // 167
    "check.error_code",
    "check.error_message",
    "request.total_size",
    "response.total_size",
    "connection.event",
    "check.cache_hit",
    "quota.cache_hit",
    "source.principal",
    "request.auth.claims",
    "request.auth.raw_claims",
    "connection.mtls",
    // 178
    "source.metadata",
    "source.owner",
    "source.services",
    "source.workload.uid",
    "source.workload.name",
    "source.workload.namespace",
    "destination.metadata",
    "destination.owner",
    "destination.principal",
    "destination.workload.uid",
    "destination.workload.name",
    "destination.workload.namespace",
    // 190
    "destination.service.uid",
    "destination.service.name",
    "destination.service.namespace",
    "destination.service.host",
    "destination.container.name",
    "destination.container.image",
    "context.reporter.local",
    "context.reporter.uid",
    "response.grpc_status",
    "response.grpc_message",
    "context.reporter.type",
    "context.reporter.kind",
    "connection.requested_server_name",
    "request.url_path",
    "request.query_params",
    "context.proxy_error_code",
    // 206: Envoy's response flags
    "UH",
    "UF",
    "UO",
    "NR",
    "LH",
    "UT",
    "LR",
    "UR",
    "UC",
    "DI",
    "FI",
    "RL",
    // 218
    "\"-\"",
    "inbound",
    "outbound",
    "context.proxy_version",
];

/// The words by [`slot`]; where that is taken the next one is, and so on.
static SLOTS: [u8; SLOTS_LEN] = slots();

const SLOTS_LEN: usize = 1024;
const FREE: u8 = u8::MAX;

/// The position of `word`, if the list has it.
#[must_use]
pub fn index_of(word: &str) -> Option<usize> {
    let mut slot = slot(word.as_bytes());
    loop {
        let position = match SLOTS[slot] {
            FREE => return None,
            position => usize::from(position),
        };
        if WORDS[position] == word {
            return Some(position);
        }
        slot = (slot + 1) % SLOTS_LEN;
    }
}

/// Where a word is looked for: a few of its letters tell almost all of them apart, and most others from all of them.
const fn slot(word: &[u8]) -> usize {
    let length = word.len();
    if length == 0 {
        return 0;
    }
    let letters = (word[0] as usize * 7) ^ (word[length / 2] as usize * 59);
    (letters ^ (word[length - 1] as usize * 211) ^ (length * 37)) % SLOTS_LEN
}

const fn slots() -> [u8; SLOTS_LEN] {
    let mut slots = [FREE; SLOTS_LEN];
    let mut position = 0;
    while position < WORDS.len() {
        let mut slot = slot(WORDS[position].as_bytes());
        while slots[slot] != FREE {
            slot = (slot + 1) % SLOTS_LEN;
        }
        slots[slot] = position as u8;
        position += 1;
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_positions_hold() {
        for (position, word) in [
            (0, "source.ip"),
            (30, "response.code"),
            (35, ":status"),
            (49, "allow"),
            (65, "host"),
            (89, "www-authenticate"),
            (94, "'200'"),
            (96, "chunked"),
            (103, "x-requested-with"),
            (110, "text/plain; charset=utf-8"),
            (111, "'0'"),
            (112, "'1'"),
            (124, "tcp"),
            (133, "context.time"),
            (134, "0"),
            (149, "504"),
            (158, "source.service"),
            (166, "request.api_key"),
            (177, "connection.mtls"),
            (189, "destination.workload.namespace"),
            (205, "context.proxy_error_code"),
            (217, "RL"),
            (218, "\"-\""),
            (221, "context.proxy_version"),
        ] {
            assert_eq!(WORDS[position], word);
            assert_eq!(index_of(word), Some(position));
        }
    }

    #[test]
    fn words_are_unique() {
        for (position, word) in WORDS.iter().enumerate() {
            assert_eq!(index_of(word), Some(position));
        }
        assert_eq!(index_of(""), None);
        assert_eq!(index_of("no such word"), None);
    }
}
