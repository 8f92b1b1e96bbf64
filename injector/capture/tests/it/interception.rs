//! `istio-iptables` against tables of who reaches whom, with iptables and with nft where iptables is absent.

use std::process::Output;

use crate::network::{Pod, ask_on_node, eventually, on_a_node, serve_on_node};
use crate::tools::Tools;

/// Who answers: the proxy's two ports, the agent's two, the application; on the node a service and a name server.
pub(crate) const IN_POD: &[(&str, &str)] = &[
    ("outbound", "0.0.0.0:15001"),
    ("inbound", "0.0.0.0:15006"),
    ("status", "0.0.0.0:15020"),
    ("dns", "127.0.0.1:15053"),
    ("app", "0.0.0.0:8080"),
    ("admin", "0.0.0.0:9000"),
    ("shell", "0.0.0.0:22"),
    ("outbound", "[::]:15001"),
    ("inbound", "[::]:15006"),
    ("app", "[::]:8080"),
];
pub(crate) const ON_NODE: &[(&str, &str)] = &[
    ("service", "0.0.0.0:80"),
    ("database", "0.0.0.0:3306"),
    ("resolver", "0.0.0.0:53"),
    ("service", "[::]:80"),
];

const PROXY: &str = "1337";
const APP: &str = "1000";
const OUTSIDE: &str = "outside";

/// Somebody, where he connects to, and who answers.
pub(crate) type Row = (&'static str, &'static str, &'static str);

/// What Istio intercepts unless told otherwise.
pub(crate) const EVERYTHING: &[Row] = &[
    (APP, "tcp 10.99.0.1:80", "outbound"),
    (APP, "tcp 10.99.0.1:3306", "outbound"),
    (PROXY, "tcp 10.99.0.1:80", "service"),
    (APP, "tcp 127.0.0.1:8080", "app"),
    (PROXY, "tcp 127.0.0.1:8080", "app"),
    // An application that calls itself by the pod's address passes its inbound policies.
    (APP, "tcp 10.99.0.2:8080", "inbound"),
    (APP, "udp 10.99.0.1:53", "resolver"),
    (OUTSIDE, "tcp 10.99.0.2:8080", "inbound"),
    (OUTSIDE, "tcp 10.99.0.2:9000", "inbound"),
    (OUTSIDE, "tcp 10.99.0.2:15020", "status"),
    (OUTSIDE, "tcp 10.99.0.2:22", "shell"),
];

const NOTHING: &[Row] = &[
    (APP, "tcp 10.99.0.1:80", "service"),
    (PROXY, "tcp 10.99.0.1:80", "service"),
    (OUTSIDE, "tcp 10.99.0.2:8080", "app"),
    (OUTSIDE, "tcp 10.99.0.2:22", "shell"),
    (APP, "udp 10.99.0.1:53", "resolver"),
    (APP, "tcp [fd99::1]:80", "service"),
    (OUTSIDE, "tcp [fd99::2]:8080", "app"),
];

pub(crate) fn check(pod: &Pod, what: &str, rows: &[Row]) {
    for (who, target, want) in rows {
        let answer = eventually(want, || match *who {
            OUTSIDE => ask_on_node(target),
            user => pod.ask(user, target),
        });
        assert_eq!(answer, *want, "{what}: {who} connects to {target}");
    }
}

fn istio_iptables(pod: &Pod, tools: &Tools, flags: &[&str]) -> Output {
    let path = format!("PATH={}", tools.path());
    let program = ["env", &path, env!("CARGO_BIN_EXE_istio-iptables")];
    pod.try_run(&[&program, flags].concat())
}

/// Flags, and who reaches whom with them.
const CASES: &[(&[&str], &[Row])] = &[
    (&["-b", "*", "-i", "*", "-d", "15020"], EVERYTHING),
    (
        &["-b", "8080", "-i", "10.99.0.0/24"],
        &[
            (APP, "tcp 10.99.0.1:80", "outbound"),
            (OUTSIDE, "tcp 10.99.0.2:8080", "inbound"),
            (OUTSIDE, "tcp 10.99.0.2:9000", "admin"),
        ],
    ),
    (
        &["-b", "*", "-d", "9000", "-i", "*", "-x", "10.99.0.1/32"],
        &[
            (APP, "tcp 10.99.0.1:80", "service"),
            (OUTSIDE, "tcp 10.99.0.2:9000", "admin"),
            (OUTSIDE, "tcp 10.99.0.2:8080", "inbound"),
        ],
    ),
    (
        &["-i", "10.98.0.0/16"],
        &[
            (APP, "tcp 10.99.0.1:80", "service"),
            (OUTSIDE, "tcp 10.99.0.2:8080", "app"),
        ],
    ),
    (
        &["-i", "*", "-o", "3306"],
        &[
            (APP, "tcp 10.99.0.1:80", "outbound"),
            (APP, "tcp 10.99.0.1:3306", "database"),
        ],
    ),
    // Users and groups of the proxy.
    (
        &["-i", "*", "-u", "2000"],
        &[
            ("2000", "tcp 10.99.0.1:80", "service"),
            (PROXY, "tcp 10.99.0.1:80", "outbound"),
        ],
    ),
    (
        &["-i", "*", "-g", "1000"],
        &[(APP, "tcp 10.99.0.1:80", "service")],
    ),
    (
        &["-i", "*", "--redirect-dns"],
        &[
            (APP, "udp 10.99.0.1:53", "dns"),
            (APP, "tcp 10.99.0.1:53", "dns"),
            (PROXY, "udp 10.99.0.1:53", "resolver"),
            (APP, "tcp 10.99.0.1:80", "outbound"),
        ],
    ),
    (
        &["-b", "*", "-i", "*"],
        &[
            (APP, "tcp [fd99::1]:80", "outbound"),
            (PROXY, "tcp [fd99::1]:80", "service"),
            (OUTSIDE, "tcp [fd99::2]:8080", "inbound"),
            (APP, "tcp [::1]:8080", "app"),
        ],
    ),
    (
        &["-m", "TPROXY", "-b", "*", "-i", "*", "-d", "15020"],
        EVERYTHING,
    ),
    // A virtual machine behind an interface of the pod: what it sends is outbound.
    (
        &["-k", "eth0", "-b", "*", "-i", "*", "-x", "10.99.0.2/32"],
        &[
            (OUTSIDE, "tcp 10.99.0.2:8080", "app"),
            (OUTSIDE, "tcp [fd99::2]:8080", "outbound"),
        ],
    ),
    (
        &["-k", "eth0", "-m", "TPROXY", "-b", "*", "-i", "*"],
        &[(OUTSIDE, "tcp 10.99.0.2:8080", "outbound")],
    ),
    (&[], NOTHING),
];

fn is_what_the_flags_say(tools: &Tools) {
    let pod = Pod::connected();
    pod.serve(IN_POD);
    serve_on_node(ON_NODE);
    check(&pod, "without rules", NOTHING);
    for (flags, rows) in CASES {
        // Twice: what was there before is replaced.
        for _ in 0..2 {
            let output = istio_iptables(&pod, tools, flags);
            assert!(output.status.success(), "{flags:?}: {output:?}");
        }
        check(&pod, &format!("{flags:?}"), rows);
    }
}

#[test]
#[ignore = "needs root and iptables"]
fn who_is_intercepted_is_what_the_flags_say() {
    on_a_node(|| is_what_the_flags_say(&Tools::iptables()));
}

#[test]
#[ignore = "needs root and nft"]
fn who_is_intercepted_is_the_same_by_nft() {
    on_a_node(|| is_what_the_flags_say(&Tools::nft()));
}

#[test]
#[ignore = "needs root and nft"]
fn where_no_proxy_listens_nobody_gets_in() {
    on_a_node(|| {
        let pod = Pod::connected();
        pod.serve(IN_POD);
        for mode in ["REDIRECT", "TPROXY"] {
            let output =
                istio_iptables(&pod, &Tools::nft(), &["-m", mode, "-b", "*", "-z", "15999"]);
            assert!(output.status.success(), "{mode}: {output:?}");
            check(&pod, mode, &[(OUTSIDE, "tcp 10.99.0.2:8080", "nobody")]);
        }
    });
}

#[test]
#[ignore = "needs root, iptables and nft"]
fn what_was_programmed_is_taken_away_and_what_others_did_stays() {
    on_a_node(|| {
        let pod = Pod::connected();
        let state = || {
            let parts = [
                vec!["iptables-save"],
                vec!["ip6tables-save"],
                vec!["ip", "rule"],
                vec!["ip", "-6", "rule"],
                vec!["ip", "route", "show", "table", "all"],
                vec!["ip", "addr", "show", "dev", "lo"],
                vec!["nft", "list", "tables"],
            ];
            let text = parts.map(|line| pod.run(&line)).concat();
            // Dates and counters differ, and a table of iptables that was looked at is there from then on.
            let kept = text.lines().filter(|line| {
                let is_of_iptables = line.starts_with("table ip") && !line.contains("istio");
                !line.starts_with(['#', ':', '*', 'C']) && !is_of_iptables
            });
            kept.map(|line| format!("{line}\n")).collect::<String>()
        };
        let foreign = [
            "iptables", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "9", "-j", "RETURN",
        ];
        pod.run(&foreign);
        let before = state();
        for (tools, kind) in [
            (Tools::iptables(), "*nat"),
            (Tools::nft(), "table ip istio_nat"),
        ] {
            for flags in [
                vec!["-b", "*", "-i", "*", "--redirect-dns"],
                vec!["-m", "TPROXY", "-b", "*", "-i", "*", "-k", "net1"],
            ] {
                let output = istio_iptables(&pod, &tools, &[&flags[..], &["--dry-run"]].concat());
                let shown = String::from_utf8(output.stdout).unwrap();
                assert!(shown.contains(kind), "{flags:?}: {shown}");
                assert_eq!(state(), before, "{flags:?}: a dry run changes nothing");
                let output = istio_iptables(&pod, &tools, &flags);
                assert!(output.status.success(), "{output:?}");
                assert_ne!(state(), before, "{flags:?}");
                let output = istio_iptables(&pod, &tools, &["--clean"]);
                assert!(output.status.success(), "{output:?}");
                assert_eq!(state(), before, "{flags:?}");
            }
        }
    });
}

#[test]
#[ignore = "needs root and iptables"]
fn validation_tells_whether_the_rules_are_there() {
    on_a_node(|| {
        let pod = Pod::new();
        let tools = Tools::iptables();
        let tries = |seconds| {
            [
                "--run-validation",
                "--skip-rule-apply",
                "--probe-timeout",
                seconds,
            ]
        };
        let output = istio_iptables(&pod, &tools, &tries("1"));
        assert_eq!(output.status.code(), Some(126), "{output:?}");
        for flags in [["-b", "*"], ["-m", "TPROXY"]] {
            assert!(istio_iptables(&pod, &tools, &flags).status.success());
            let output = istio_iptables(&pod, &tools, &tries("20"));
            assert!(output.status.success(), "{flags:?}: {output:?}");
        }
    });
}
