use clap::Parser as _;

use super::*;

fn tables(arguments: &[&str]) -> Vec<Table> {
    let options = Options::parse_from([&["istio-iptables"], arguments].concat());
    build(&options, Family::V4)
}

fn rules(arguments: &[&str]) -> String {
    iptables::print(&tables(arguments))
}

#[test]
fn everything_is_redirected_but_the_proxy_and_loopback() {
    let want = "*nat\n\
        :ISTIO_INBOUND - [0:0]\n:ISTIO_IN_REDIRECT - [0:0]\n:ISTIO_KUBEVIRT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
        :ISTIO_OUTPUT_DNS - [0:0]\n:ISTIO_REDIRECT - [0:0]\n\
        -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\n\
        -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006\n\
        -A PREROUTING -p tcp -j ISTIO_INBOUND\n\
        -A ISTIO_INBOUND -p tcp --dport 22 -j RETURN\n\
        -A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN\n\
        -A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT\n\
        -A OUTPUT -p tcp -j ISTIO_OUTPUT\n\
        -A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN\n\
        -A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -j ISTIO_IN_REDIRECT\n\
        -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN\n\
        -A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN\n\
        -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN\n\
        -A ISTIO_OUTPUT -j ISTIO_REDIRECT\nCOMMIT\n";
    assert_eq!(rules(&["-b", "*", "-i", "*", "-d", "15020"]), want);
}

#[test]
fn nft_says_the_same_in_tables_of_its_own() {
    let flags = [
        "-m",
        "TPROXY",
        "-b",
        "80",
        "-i",
        "10.0.0.0/8",
        "-x",
        "fd00::/8",
    ];
    let want = "add table ip istio_nat\ndelete table ip istio_nat\n\
        add table ip istio_mangle\ndelete table ip istio_mangle\n\
        table ip istio_mangle {\n\
        \tchain ISTIO_DIVERT {\n\t\tmeta mark set 1337\n\t\taccept\n\t}\n\
        \tchain ISTIO_INBOUND {\n\
        \t\tiifname \"lo\" meta l4proto tcp return\n\
        \t\tmeta l4proto tcp ct state related,established jump ISTIO_DIVERT\n\
        \t\ttcp dport 80 jump ISTIO_TPROXY\n\t}\n\
        \tchain ISTIO_TPROXY {\n\
        \t\tip daddr != 127.0.0.1/32 meta l4proto tcp tproxy to :15006 meta mark set 1337 accept\n\
        \t\tip daddr != 127.0.0.1/32 meta l4proto tcp drop\n\t}\n\
        \tchain PREROUTING {\n\t\ttype filter hook prerouting priority -150; policy accept;\n\
        \t\tmeta l4proto tcp jump ISTIO_INBOUND\n\t}\n}\n\
        table ip istio_nat {\n\
        \tchain ISTIO_INBOUND {\n\t}\n\
        \tchain ISTIO_IN_REDIRECT {\n\t\tmeta l4proto tcp redirect to :15006\n\t}\n\
        \tchain ISTIO_KUBEVIRT {\n\t}\n\
        \tchain ISTIO_OUTPUT {\n\
        \t\tip saddr 127.0.0.6/32 oifname \"lo\" return\n\
        \t\tip daddr != 127.0.0.1/32 oifname \"lo\" jump ISTIO_IN_REDIRECT\n\
        \t\tmeta skuid 1337 return\n\t\tmeta skgid 1337 return\n\
        \t\tip daddr 127.0.0.1/32 return\n\
        \t\tip daddr 10.0.0.0/8 jump ISTIO_REDIRECT\n\t}\n\
        \tchain ISTIO_OUTPUT_DNS {\n\t}\n\
        \tchain ISTIO_REDIRECT {\n\t\tmeta l4proto tcp redirect to :15001\n\t}\n\
        \tchain PREROUTING {\n\t\ttype nat hook prerouting priority -100; policy accept;\n\t}\n\
        \tchain OUTPUT {\n\t\ttype nat hook output priority -100; policy accept;\n\
        \t\tmeta l4proto tcp jump ISTIO_OUTPUT\n\t}\n}\n";
    assert_eq!(nft::print(&tables(&flags), Family::V4), want);
}

#[test]
fn what_a_virtual_machine_in_the_pod_sends_is_outbound_and_nothing_else() {
    let rules = rules(&[
        "-k",
        "net1,net2",
        "-i",
        "10.0.0.0/8",
        "-x",
        "10.9.0.0/16",
        "-b",
        "*",
    ]);
    let want = "-A PREROUTING -i net1 -p tcp -j ISTIO_KUBEVIRT\n\
        -A PREROUTING -i net2 -p tcp -j ISTIO_KUBEVIRT\n\
        -A ISTIO_KUBEVIRT -d 10.9.0.0/16 -j ACCEPT\n\
        -A ISTIO_KUBEVIRT -d 10.0.0.0/8 -j ISTIO_REDIRECT\n\
        -A ISTIO_KUBEVIRT -j ACCEPT\n\
        -A PREROUTING -p tcp -j ISTIO_INBOUND\n";
    assert!(rules.contains(want), "{rules}");
}

#[test]
fn lists_select_ports_and_blocks() {
    let rules = rules(&[
        "-b",
        "80,443",
        "-i",
        "10.0.0.0/8",
        "-x",
        "10.9.0.1",
        "-o",
        "3306",
        "-d",
        "99",
    ]);
    for rule in [
        "-A ISTIO_INBOUND -p tcp --dport 80 -j ISTIO_IN_REDIRECT\n",
        "-A ISTIO_INBOUND -p tcp --dport 443 -j ISTIO_IN_REDIRECT\n",
        "-A ISTIO_OUTPUT -p tcp --dport 3306 -j RETURN\n",
        "-A ISTIO_OUTPUT -d 10.9.0.1/32 -j RETURN\n",
        "-A ISTIO_OUTPUT -d 10.0.0.0/8 -j ISTIO_REDIRECT\n",
    ] {
        assert!(rules.contains(rule), "{rule} is missing in\n{rules}");
    }
    assert!(!rules.contains("--dport 99") && !rules.contains("-A ISTIO_OUTPUT -j ISTIO_REDIRECT"));
}

#[test]
fn nothing_selected_intercepts_nothing() {
    let rules = rules(&[]);
    assert!(!rules.contains("PREROUTING") && !rules.contains("ISTIO_OUTPUT -j ISTIO_REDIRECT"));
}

#[test]
fn tproxy_marks_in_the_mangle_table() {
    let rules = rules(&["-m", "TPROXY", "-b", "*"]);
    let (mangle, nat) = rules.split_once("COMMIT\n").unwrap();
    assert!(mangle.starts_with("*mangle\n") && mangle.contains("--on-port 15006\n"));
    assert!(mangle.contains("-A PREROUTING -p tcp -j ISTIO_INBOUND\n"));
    assert!(nat.starts_with("*nat\n") && !nat.contains("PREROUTING"));
}

#[test]
fn names_are_asked_of_the_agent_by_everybody_but_the_agent() {
    let rules = rules(&["--redirect-dns"]);
    for rule in [
        "-A OUTPUT -p udp --dport 53 -j ISTIO_OUTPUT_DNS\n\
         -A ISTIO_OUTPUT_DNS -m owner --uid-owner 1337 -j RETURN\n\
         -A ISTIO_OUTPUT_DNS -m owner --gid-owner 1337 -j RETURN\n\
         -A ISTIO_OUTPUT_DNS -p udp -j REDIRECT --to-ports 15053\n",
        "-A ISTIO_OUTPUT -p tcp --dport 53 -j REDIRECT --to-ports 15053\n-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN\n",
    ] {
        assert!(rules.contains(rule), "{rule} is missing in\n{rules}");
    }
}

#[test]
fn wrong_values_say_what_would_be_right() {
    for (flag, value, hint) in [
        ("-b", "80,x", "1 to 65535"),
        ("-x", "10.0.0.0/99", "10.0.0.0/8"),
        ("-m", "magic", "REDIRECT"),
        ("-k", "eth0 -j ACCEPT", "net1"),
    ] {
        let error = Options::try_parse_from(["istio-iptables", flag, value])
            .unwrap_err()
            .to_string();
        assert!(error.contains(hint), "{error}");
    }
}
