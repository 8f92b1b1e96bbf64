//! The installer on nodes that are temporary folders.

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: InstallArgs,
}

/// A node: folders for networks and programs, a service account's files, and a program.
struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        let node = Node(tempfile::tempdir().unwrap());
        for folder in ["net.d", "bin", "account"] {
            fs::create_dir(node.path(folder)).unwrap();
        }
        fs::write(node.path("program"), "v1").unwrap();
        fs::write(node.path("account/token"), "first\n").unwrap();
        fs::write(node.path("account/ca.crt"), "PEM").unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.text(name)).unwrap()
    }

    fn installer(&self, flags: &[&str]) -> Installer {
        let config = r#"{"cniVersion": "0.3.1", "name": "istio-cni", "type": "istio-cni", "log_level": "__LOG_LEVEL__",
            "kubernetes": {"kubeconfig": "__KUBECONFIG_FILEPATH__", "exclude_namespaces": ["istio-system"]}}"#;
        let own = [
            ("--mounted-net-dir", "net.d"),
            ("--token", "account/token"),
            ("--authority", "account/ca.crt"),
        ];
        let mut line = [
            "install",
            "--network-config",
            config,
            "--api-host",
            "10.96.0.1",
        ]
        .map(str::to_owned)
        .to_vec();
        for (flag, name) in own {
            line.extend([flag.to_owned(), self.path(name).display().to_string()]);
        }
        let folders = format!(
            "{},{}",
            self.path("bin").display(),
            self.path("second").display()
        );
        line.extend(["--mounted-bin-dirs".to_owned(), folders]);
        line.extend(flags.iter().map(|flag| (*flag).to_owned()));
        Installer::new(Command::parse_from(line).args, self.path("program")).unwrap()
    }

    /// Names in the folder of the networks.
    fn networks(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path("net.d"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn types(list: &Value) -> Vec<&str> {
    let plugins = list["plugins"].as_array().unwrap();
    plugins
        .iter()
        .map(|plugin| plugin["type"].as_str().unwrap())
        .collect()
}

const KUBECONFIG: &str = "ZZZ-istio-cni-kubeconfig";
const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}, {"type": "portmap"}], "disableCheck": true}"#;

#[test]
fn the_first_sound_network_is_extended_and_everything_is_taken_back() {
    let node = Node::new();
    fs::write(node.path("net.d/00-broken.conflist"), "{").unwrap();
    fs::write(node.path("net.d/10-net.conflist"), LIST).unwrap();
    fs::write(node.path("net.d/20-other.conflist"), LIST).unwrap();
    let installer = node.installer(&[]);
    assert!(installer.reconcile().unwrap().is_complete);
    let list = node.json("net.d/10-net.conflist");
    assert_eq!(types(&list), ["bridge", "portmap", "istio-cni"]);
    let entry = json!({"type": "istio-cni", "log_level": "warn", "kubernetes": {
        "kubeconfig": "/etc/cni/net.d/ZZZ-istio-cni-kubeconfig", "exclude_namespaces": ["istio-system"],
    }});
    assert_eq!(list["plugins"][2], entry);
    assert_eq!(
        (&list["disableCheck"], &list["name"]),
        (&json!(true), &json!("net"))
    );
    assert_eq!(node.text("net.d/20-other.conflist"), LIST);
    assert_eq!(node.text("bin/istio-cni"), "v1");
    let mode = |name| fs::metadata(node.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode("bin/istio-cni"), mode(&format!("net.d/{KUBECONFIG}"))),
        (0o755, 0o600)
    );

    let again = installer.reconcile().unwrap();
    assert!(again.changes.is_empty(), "{again:?}");
    installer.remove();
    assert_eq!(
        types(&node.json("net.d/10-net.conflist")),
        ["bridge", "portmap"]
    );
    assert_eq!(
        node.networks(),
        ["00-broken.conflist", "10-net.conflist", "20-other.conflist"]
    );
    assert!(!node.path("bin/istio-cni").exists());
}

#[test]
fn what_somebody_changes_is_put_right_at_the_next_look() {
    let node = Node::new();
    let installer = node.installer(&[]);
    let empty = installer.reconcile().unwrap();
    assert!(!empty.is_complete, "there is no network yet");
    assert_eq!(node.networks(), [KUBECONFIG]);

    fs::write(node.path("net.d/10-net.conflist"), LIST).unwrap();
    assert!(installer.reconcile().unwrap().is_complete);
    // The entry is taken out, the token renewed, the program lost.
    fs::write(node.path("net.d/10-net.conflist"), LIST).unwrap();
    fs::write(node.path("account/token"), "second").unwrap();
    fs::remove_file(node.path("bin/istio-cni")).unwrap();
    assert_eq!(installer.reconcile().unwrap().changes.len(), 3);
    assert_eq!(types(&node.json("net.d/10-net.conflist"))[2], "istio-cni");
    let kubeconfig = node.json(&format!("net.d/{KUBECONFIG}"));
    assert_eq!(kubeconfig["users"][0]["user"]["token"], "second");
    assert_eq!(
        kubeconfig["clusters"][0]["cluster"]["server"],
        "https://10.96.0.1:443"
    );
    // Another network comes, which the runtime takes from now on.
    fs::write(node.path("net.d/05-net.conflist"), LIST).unwrap();
    installer.reconcile().unwrap();
    assert_eq!(types(&node.json("net.d/05-net.conflist"))[2], "istio-cni");
    assert_eq!(
        types(&node.json("net.d/10-net.conflist")),
        ["bridge", "portmap"]
    );
}

#[test]
fn a_single_plugin_becomes_a_list_and_is_restored_at_the_end() {
    let node = Node::new();
    let single = r#"{"cniVersion": "0.3.1", "name": "flannel", "type": "flannel", "delegate": {}}"#;
    fs::write(node.path("net.d/10-flannel.conf"), single).unwrap();
    let installer = node.installer(&[]);
    installer.reconcile().unwrap();
    assert_eq!(
        node.networks(),
        [
            "10-flannel.conf.before-istio-cni",
            "10-flannel.conflist",
            KUBECONFIG
        ]
    );
    assert_eq!(
        types(&node.json("net.d/10-flannel.conflist")),
        ["flannel", "istio-cni"]
    );
    assert!(installer.reconcile().unwrap().changes.is_empty());
    installer.remove();
    assert_eq!(node.networks(), ["10-flannel.conf"]);
    assert_eq!(node.text("net.d/10-flannel.conf"), single);
}

#[test]
fn the_environment_says_where_and_whether_chained() {
    let node = Node::new();
    fs::write(node.path("net.d/10-net.conflist"), LIST).unwrap();
    fs::write(node.path("net.d/20-wanted.conflist"), LIST).unwrap();
    let named = node.installer(&["--conf-name", "20-wanted.conf"]);
    named.reconcile().unwrap();
    assert_eq!(node.text("net.d/10-net.conflist"), LIST);
    assert_eq!(
        types(&node.json("net.d/20-wanted.conflist"))[2],
        "istio-cni"
    );
    named.remove();

    let alone = node.installer(&[
        "--chained",
        "false",
        "--skip-binaries",
        "istio-cni",
        "--skip-tls-verify",
        "true",
    ]);
    assert!(alone.reconcile().unwrap().is_complete);
    assert_eq!(
        types(&node.json("net.d/YYY-istio-cni.conflist")),
        ["istio-cni"]
    );
    assert!(!node.path("bin/istio-cni").exists());
    let cluster = &node.json(&format!("net.d/{KUBECONFIG}"))["clusters"][0]["cluster"];
    assert_eq!(cluster["insecure-skip-tls-verify"], true);
    alone.remove();
    assert_eq!(node.networks(), ["10-net.conflist", "20-wanted.conflist"]);
}

#[test]
fn what_cannot_be_installed_is_named() {
    let node = Node::new();
    for (flags, reason) in [
        (["--network-config", "{"], "the plugin's configuration"),
        (
            ["--network-config", r#"{"type": "bridge"}"#],
            "wanted \"istio-cni\"",
        ),
        (
            ["--network-config-file", "/nowhere/at/all"],
            "read CNI_NETWORK_CONFIG_FILE",
        ),
    ] {
        let args = Command::parse_from([&["install", "--api-host", "h"], &flags[..]].concat()).args;
        let error = Installer::new(args, node.path("program")).err().unwrap();
        assert!(format!("{error:#}").contains(reason), "{error:#}");
    }
    fs::remove_dir(node.path("bin")).unwrap();
    let error = node.installer(&[]).reconcile().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("none of the folders for the program"),
        "{error}"
    );
}
