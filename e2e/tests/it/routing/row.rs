//! A configuration, the calls, and what must be seen of them.

use e2e::echo::{Call, Outcome, Protocol};

/// Stands for the row's own host, which nobody else has.
pub(super) const HOST: &str = "HOST";
/// In routes: the destination of that version.
const VERSIONS: [(&str, &str); 2] = [
    ("V1", "{destination: {host: app, subset: v1}"),
    ("V2", "{destination: {host: app, subset: v2}"),
];

type Seen = Box<dyn Fn(&[Outcome]) -> bool>;

/// One of them.
pub(super) struct Row {
    pub(super) name: &'static str,
    /// `http` of a virtual service of the row's own host; empty for a row about what is there for all.
    http: String,
    calls: Vec<Call>,
    seen: Seen,
}

impl Row {
    /// A row with routes of its own.
    pub(super) fn routed(
        name: &'static str,
        http: &str,
        calls: Vec<Call>,
        seen: impl Fn(&[Outcome]) -> bool + 'static,
    ) -> Self {
        Self {
            name,
            http: http.to_owned(),
            calls,
            seen: Box::new(seen),
        }
    }

    /// A row about what is there for all.
    pub(super) fn about(
        name: &'static str,
        calls: Vec<Call>,
        seen: impl Fn(&[Outcome]) -> bool + 'static,
    ) -> Self {
        Self::routed(name, "", calls, seen)
    }

    /// The first call matches `condition` and gets to the second version; the other one does not.
    pub(super) fn matching(condition: &'static str, good: Call, bad: Call) -> Self {
        let http = format!("[{{match: [{{{condition}}}], route: [V2}}]}}, {{route: [V1}}]}}]");
        Self::routed(condition, &http, vec![good, bad], |outcomes| {
            is_by("v2", &outcomes[0]) && is_by("v1", &outcomes[1])
        })
    }

    /// What becomes of a single call of a route; `route` is all of it but its destination, the first version.
    pub(super) fn acting(
        route: &'static str,
        call: Call,
        seen: impl Fn(&Outcome) -> bool + 'static,
    ) -> Self {
        let http = format!("[{{{route}, route: [V1}}]}}]");
        Self::routed(route, &http, vec![call], move |outcomes| seen(&outcomes[0]))
    }

    pub(super) fn manifest(&self, index: usize) -> String {
        if self.http.is_empty() {
            return String::new();
        }
        let mut http = self.http.clone();
        for (name, destination) in VERSIONS {
            http = http.replace(name, destination);
        }
        let (host, http) = (host(index), http.replace(HOST, &host(index)));
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: row-{index}, namespace: servers}}\n\
             spec:\n  hosts: [{host}, \"*.{host}\"]\n  http: {http}\n"
        )
    }

    pub(super) fn calls(&self, index: usize) -> Vec<Call> {
        let of_row = |call: &Call| call.clone().host(&call.host.replace(HOST, &host(index)));
        self.calls.iter().map(of_row).collect()
    }

    pub(super) fn is_seen(&self, outcomes: &[Outcome]) -> bool {
        (self.seen)(outcomes)
    }
}

fn host(index: usize) -> String {
    format!("r{index}.test")
}

/// A call of the row's own host.
pub(super) fn get(target: &str) -> Call {
    Call::new(Protocol::Http1, "app.servers:80")
        .host(HOST)
        .target(target)
}

/// True when the server of this name has answered.
pub(super) fn is_by(server: &str, outcome: &Outcome) -> bool {
    outcome.is_served() && outcome.text.contains(&format!("server: {server}"))
}
