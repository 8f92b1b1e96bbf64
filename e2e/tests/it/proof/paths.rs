//! One path in many spellings: whatever way `/admin/…` is written, the policy sees it or the server does not.
//!
//! What counts is what reaches the server: its path after everything that RFC 3986 lets a server do (decode, drop dots and
//! empty segments), with path parameters dropped and case folded, as many a server does.
//!
//! Where only what is allowed gets through, no spelling does ([`hold`]). Where only `/admin` is denied, every spelling is but
//! those that Istio takes for [other paths](OTHERS).

use e2e::echo::{Call, Outcome, Protocol};
use e2e::mesh::eventually;

use super::{ENVOY, Stage};
use crate::SETTLED;

/// Spellings that lead to `/admin/x` for one server or another.
const SPELLINGS: &[&str] = &[
    "/admin/x",
    "//admin/x",
    "///admin//x",
    "/./admin/x",
    "/open/../admin/x",
    "/open/./../admin/x",
    "/open//../../admin/x",
    "/%2e/admin/x",
    "/%2E/admin/x",
    "/open/%2e%2e/admin/x",
    "/open/.%2e/admin/x",
    "/open/..%2fadmin/x",
    "/open/%2e%2e%2fadmin%2fx",
    "/open%2f..%2fadmin/x",
    "/open%2F..%2Fadmin/x",
    "/%61dmin/x",
    "/%61%64%6D%69%6E/x",
    "/admin%2fx",
    "/admin%2Fx",
    "%2fadmin/x",
    "/admin;a=b/x",
    "/;a=b/admin/x",
    "/admin/;x",
    "/ADMIN/x",
    "/Admin/x",
    "/admin",
    "/admin/",
    "/admin/.",
    "/admin/x/",
    "/admin/x?y=/open",
    "/admin/x#/open",
    "/open\\..\\admin\\x",
    "/open/..\\admin/x",
    "\\admin\\x",
    "/open%5c..%5cadmin/x",
    "/open/%252e%252e/admin/x",
    "http://app.servers:8001/admin/x",
    "http://app.servers:8001//admin/x",
    "http://app.servers:8001/open/../admin/x",
    "http://app.servers:8001/open/%2e%2e/admin/x",
    "http://elsewhere/admin/x",
];

/// Other paths than `/admin/…`, and than `/exact`, to a policy: `;` is a letter like any other, case counts, what is escaped twice
/// stays escaped, and a slash at the end makes a difference.
const OTHERS: &[&str] = &[
    "/admin;a=b/x",
    "/;a=b/admin/x",
    "/ADMIN/x",
    "/Admin/x",
    "/open/%252e%252e/admin/x",
    "/administration",
    "/exact/",
    "/exact;a=b",
    "/Exact",
];

/// No spelling gets through to the server, from inside or from outside.
pub(super) async fn hold(stage: &Stage) {
    let pod = stage.pod_ip("servers", "app").await;
    let call = |target: &str| Call::new(Protocol::Raw, &format!("{pod}:8001")).target(target);
    let mut calls: Vec<Call> = SPELLINGS.iter().map(|target| call(target)).collect();
    // What is allowed is still allowed.
    calls.push(call("/open/x"));
    for namespace in ["outside", "auto"] {
        let outcomes = stage.call(namespace, &calls).await;
        let through: Vec<String> = outcomes
            .iter()
            .zip(&calls)
            .filter(|(outcome, _)| outcome.is_served() && is_admin(&outcome.text))
            .map(|(outcome, call)| format!("{}: {}", call.target, outcome.text))
            .collect();
        assert!(
            through.is_empty(),
            "from {namespace}:\n{}",
            through.join("\n")
        );
        assert!(outcomes[SPELLINGS.len()].is_served(), "{outcomes:?}");
        assert_eq!(outcomes[0].status, Some(403), "{:?}", outcomes[0]);
    }
    denials_hold(stage).await;
}

/// Of a server that is open but for `/admin` and `/exact`, with our proxy and with a real Envoy, asked past every client's proxy over
/// HTTP/1 and HTTP/2: what is denied is denied however it is written, and what is another path arrives as it was written.
async fn denials_hold(stage: &Stage) {
    let mut policies = String::new();
    let mut calls = Vec::new();
    for of in ["", ENVOY] {
        let server = format!("permissive{of}");
        policies += &include_str!("../../security/paths.yaml").replace("{{name}}", &server);
        let pod = stage.pod_ip("servers", &server).await;
        let other = SPELLINGS.iter().filter(|path| !OTHERS.contains(path));
        let denied = other.chain(&["/exact", "//exact", "/%65xact?x=/"]);
        let all = denied.map(|path| (path, false));
        for (path, is_other) in all.chain(OTHERS.iter().map(|path| (path, true))) {
            let raw = Call::new(Protocol::Raw, &format!("{pod}:8001")).target(path);
            calls.push((raw, is_other));
            // As far as `:path` can be such.
            if path.starts_with('/') && !path.contains('#') {
                let stream = Call::new(Protocol::Http2, &format!("{pod}:8002")).target(path);
                calls.push((stream, is_other));
            }
        }
    }
    stage.apply(&policies).await;
    let all: Vec<Call> = calls.iter().map(|(call, _)| call.clone()).collect();
    let mut wrong = Vec::new();
    let settled = eventually("what is denied is denied", SETTLED, async || {
        let outcomes = stage.call("outside", &all).await;
        let all = calls.iter().zip(&outcomes);
        let others = all.filter(|((call, is_other), outcome)| !is_right(call, *is_other, outcome));
        wrong = others
            .map(|((call, is_other), outcome)| {
                let (by, path) = (call.protocol, &call.target);
                format!("{by:?} {path}, another path: {is_other}: {outcome:?}")
            })
            .collect();
        wrong.is_empty()
    });
    let settled = settled.await;
    assert!(settled.is_ok(), "{}", wrong.join("\n"));
}

/// What is denied is answered by the proxy: denied, or no request at all.
fn is_right(call: &Call, is_other: bool, outcome: &Outcome) -> bool {
    if is_other {
        let path = format!("path: {}\n", call.target);
        return outcome.is_served() && outcome.text.contains(&path);
    }
    matches!(outcome.status, Some(400 | 403))
}

/// Whether a server may take the path that it was given for one below `/admin`.
fn is_admin(text: &str) -> bool {
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("path: "))
        .unwrap();
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let path = decode(path).replace('\\', "/").to_ascii_lowercase();
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    segments.first() == Some(&"admin")
}

fn decode(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut out = Vec::new();
    let mut index = 0;
    while index < bytes.len() {
        let code = (bytes[index] == b'%')
            .then(|| path.get(index + 1..index + 3))
            .flatten();
        if let Some(byte) = code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            out.push(byte);
            index += 3;
        } else {
            out.push(bytes[index]);
            index += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
