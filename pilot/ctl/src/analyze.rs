//! `biremectl analyze`: mistakes that no object shows alone (a host, subset or gateway that is not there), and those that
//! it does. Codes are those of `istioctl analyze`. It reads the mesh on this machine, files, or both together.

use std::{collections::BTreeMap, fs, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Args;
use galley::validation::validate_documents;
use proto_component::process::Usage;
use serde_json::Value;

use crate::{
    local::{FormatArgs, MeshArgs, commands},
    table::{Format, Table, print_text},
};

/// `analyze`.
#[derive(Clone, Debug, Args)]
pub struct AnalyzeArgs {
    /// Manifests to look at, over what the mesh has.
    pub files: Vec<PathBuf>,
    /// Look at the mesh on this machine as well (it always is when no file is given).
    #[arg(long)]
    pub use_mesh: bool,
    /// Only objects of this namespace.
    #[arg(short = 'n', long)]
    pub namespace: Option<String>,
    /// Which mesh.
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Message {
    level: &'static str,
    code: &'static str,
    /// `VirtualService reviews.default`, with file and line if it came from one.
    origin: String,
    text: String,
}

/// Objects by kind.
#[derive(Debug, Default)]
struct Objects(Vec<Object>);

#[derive(Clone, Debug)]
struct Object {
    value: Value,
    place: Option<String>,
}

/// Reads, looks, and prints; exit code 1 when there is an error among the findings.
pub(crate) async fn run(args: AnalyzeArgs) -> anyhow::Result<ExitCode> {
    let mut objects = Objects::default();
    if args.files.is_empty() || args.use_mesh {
        objects.read_mesh(&args.mesh).await?;
    }
    let mut messages = Vec::new();
    for file in &args.files {
        let text = fs::read_to_string(file)
            .map_err(|error| Usage(format!("{}: {error}", file.display())))?;
        messages.extend(objects.read_file(&file.display().to_string(), &text));
    }
    messages.extend(objects.analyze());
    messages.sort();
    messages.dedup();
    if let Some(namespace) = &args.namespace {
        messages.retain(|message| message.origin.contains(&format!(".{namespace}")));
    }
    print(&messages, args.format.output)?;
    let has_errors = messages.iter().any(|message| message.level == "Error");
    Ok(if has_errors {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn print(messages: &[Message], format: Format) -> anyhow::Result<()> {
    if format == Format::Table {
        for message in messages {
            print_text(&format!(
                "{} [{}] ({}) {}\n",
                message.level, message.code, message.origin, message.text
            ))?;
        }
        if messages.is_empty() {
            print_text("✔ No validation issues found.\n")?;
        }
        return Ok(());
    }
    let mut table = Table::new(&["LEVEL", "CODE", "ORIGIN", "MESSAGE"]);
    for message in messages {
        table.row([message.level, message.code, &message.origin, &message.text]);
    }
    table.print(format)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// `reviews` in namespace `default` is `reviews.default.svc.cluster.local`.
fn full_host(host: &str, namespace: &str) -> String {
    if host.contains('.') || host.contains('*') {
        host.to_owned()
    } else {
        format!("{host}.{namespace}.svc.cluster.local")
    }
}

impl Object {
    fn namespace(&self) -> &str {
        text(&self.value["metadata"], "namespace")
    }

    fn name(&self) -> &str {
        text(&self.value["metadata"], "name")
    }

    fn origin(&self) -> String {
        let place = self
            .place
            .as_ref()
            .map_or(String::new(), |place| format!(" {place}"));
        format!(
            "{} {}.{}{place}",
            text(&self.value, "kind"),
            self.name(),
            self.namespace()
        )
    }
}

impl Objects {
    async fn read_mesh(&mut self, mesh: &MeshArgs) -> anyhow::Result<()> {
        let client = commands::client(mesh)?;
        for kind in commands::kind_names() {
            let selector = commands::all_of_kind(kind);
            let found: Vec<Value> = client
                .get("/v1/objects", &selector)
                .await
                .context("read the mesh's objects")?;
            self.0
                .extend(found.into_iter().map(|value| Object { value, place: None }));
        }
        Ok(())
    }

    /// Takes a file's objects in place of those of the same name; what is wrong with each alone.
    fn read_file(&mut self, file: &str, source: &str) -> Vec<Message> {
        let mut messages = Vec::new();
        for verdict in validate_documents(source, file) {
            let origin = |line: usize| {
                format!(
                    "{} {}.{} {file}:{line}",
                    verdict.kind, verdict.name, verdict.namespace
                )
            };
            for (level, problems) in [("Error", &verdict.errors), ("Warning", &verdict.warnings)] {
                messages.extend(problems.iter().map(|problem| Message {
                    level,
                    code: "IST0106",
                    origin: origin(problem.line),
                    text: format!(
                        "Schema validation error: {}: {}",
                        problem.path, problem.message
                    ),
                }));
            }
        }
        for document in proto::yaml::parse_documents(source).into_iter().flatten() {
            let mut value = document.value;
            if value["metadata"]["namespace"].is_null() && value["metadata"].is_object() {
                value["metadata"]["namespace"] = Value::from("default");
            }
            let same = |object: &Object| {
                object.value["kind"] == value["kind"]
                    && object.name() == text(&value["metadata"], "name")
                    && object.namespace() == text(&value["metadata"], "namespace")
            };
            self.0.retain(|object| !same(object));
            self.0.push(Object {
                value,
                place: Some(format!("{file}:{}", document.line)),
            });
        }
        messages
    }

    fn of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Object> {
        self.0
            .iter()
            .filter(move |object| object.value["kind"] == kind)
    }

    /// Every host that somebody offers: services and service entries.
    fn hosts(&self) -> Vec<String> {
        let services = self
            .of("Service")
            .map(|service| full_host(service.name(), service.namespace()));
        let entries = self
            .of("ServiceEntry")
            .flat_map(|entry| items(&entry.value["spec"]["hosts"]));
        services
            .chain(entries.filter_map(|host| host.as_str().map(str::to_owned)))
            .collect()
    }

    fn analyze(&self) -> Vec<Message> {
        let hosts = self.hosts();
        // Without any service (a few files alone) nothing can be said of hosts.
        let knows_hosts = self.of("Service").next().is_some();
        let mut messages = Vec::new();
        let mut subsets: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for rule in self.of("DestinationRule") {
            let host = full_host(text(&rule.value["spec"], "host"), rule.namespace());
            let names =
                items(&rule.value["spec"]["subsets"]).map(|subset| text(subset, "name").to_owned());
            subsets.entry(host.clone()).or_default().extend(names);
            if knows_hosts && !is_offered(&hosts, &host) {
                messages.push(not_found(rule, "host", &host));
            }
        }
        for service in self.of("VirtualService") {
            self.check_virtual_service(service, &hosts, knows_hosts, &subsets, &mut messages);
        }
        let has_pods = self.of("Pod").next().is_some();
        for gateway in self.of("Gateway").filter(|_| has_pods) {
            let selector = &gateway.value["spec"]["selector"];
            let is_selected = |pod: &Object| {
                let labels = &pod.value["metadata"]["labels"];
                selector
                    .as_object()
                    .into_iter()
                    .flatten()
                    .all(|(key, value)| &labels[key] == value)
            };
            if !self.of("Pod").any(is_selected) {
                messages.push(not_found(gateway, "selector", &selector.to_string()));
            }
        }
        for namespace in self.of("Namespace") {
            let name = namespace.name();
            let is_unlabelled = namespace.value["metadata"]["labels"]["istio-injection"].is_null();
            if is_unlabelled
                && name != crate::local::NAMESPACE
                && self.of("Pod").any(|pod| pod.namespace() == name)
            {
                messages.push(Message {
                    level: "Info",
                    code: "IST0102",
                    origin: namespace.origin(),
                    text: format!("The namespace is not enabled for injection; label it istio-injection=enabled, or disabled, to say what you mean ({name})."),
                });
            }
        }
        messages
    }

    fn check_virtual_service(
        &self,
        service: &Object,
        hosts: &[String],
        knows_hosts: bool,
        subsets: &BTreeMap<String, Vec<String>>,
        messages: &mut Vec<Message>,
    ) {
        let spec = &service.value["spec"];
        for gateway in items(&spec["gateways"])
            .filter_map(Value::as_str)
            .filter(|name| *name != "mesh")
        {
            let (namespace, name) = gateway
                .split_once('/')
                .unwrap_or((service.namespace(), gateway));
            if !self
                .of("Gateway")
                .any(|gateway| gateway.name() == name && gateway.namespace() == namespace)
            {
                messages.push(not_found(service, "gateway", gateway));
            }
        }
        for destination in destinations(spec) {
            let host = full_host(text(destination, "host"), service.namespace());
            if knows_hosts && !is_offered(hosts, &host) {
                messages.push(not_found(service, "host", &host));
            }
            let subset = text(destination, "subset");
            let is_known = subset.is_empty()
                || subsets
                    .get(&host)
                    .is_some_and(|names| names.iter().any(|name| name == subset));
            if !is_known {
                messages.push(not_found(
                    service,
                    "host+subset in destinationrule",
                    &format!("{host}+{subset}"),
                ));
            }
        }
    }
}

/// The destinations of all routes and mirrors of a virtual service.
fn destinations(spec: &Value) -> Vec<&Value> {
    let mut found = Vec::new();
    for route in ["http", "tcp", "tls"]
        .into_iter()
        .flat_map(|protocol| items(&spec[protocol]))
    {
        found.extend(items(&route["route"]).map(|weighted| &weighted["destination"]));
        if route["mirror"].is_object() {
            found.push(&route["mirror"]);
        }
    }
    found
}

fn is_offered(hosts: &[String], host: &str) -> bool {
    hosts.iter().any(
        |offered| match (offered.strip_prefix('*'), host.strip_prefix('*')) {
            (Some(suffix), _) => host.ends_with(suffix),
            (None, Some(suffix)) => offered.ends_with(suffix),
            // `reviews.default` is an accepted short form.
            (None, None) => {
                offered == host || offered.strip_suffix(".svc.cluster.local") == Some(host)
            }
        },
    )
}

fn not_found(object: &Object, what: &str, name: &str) -> Message {
    Message {
        level: "Error",
        code: "IST0101",
        origin: object.origin(),
        text: format!("Referenced {what} not found: {name:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_that_lead_nowhere_are_found() {
        let mut objects = Objects::default();
        let source = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews}\nspec: {ports: [{name: http, port: 80}]}\n---\n\
            apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [reviews]\n  gateways: [none]\n  http:\n  - route:\n    - destination: {host: reviews, subset: v1}\n      weight: 50\n    - destination: {host: ratings}\n      weight: 50\n";
        assert_eq!(objects.read_file("x.yaml", source), []);
        let messages = objects.analyze();
        let texts: Vec<&str> = messages
            .iter()
            .map(|message| message.text.as_str())
            .collect();
        assert_eq!(texts.len(), 3, "{texts:?}");
        assert!(texts[0].contains("gateway not found: \"none\""));
        assert!(texts[1].contains("reviews.default.svc.cluster.local+v1"));
        assert!(texts[2].contains("ratings.default.svc.cluster.local"));
    }

    #[test]
    fn a_wrong_field_is_found_with_its_line() {
        let source = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: a, namespace: default}\nspec:\n  servrs: []\n";
        let messages = Objects::default().read_file("x.yaml", source);
        assert!(messages[0].origin.ends_with("x.yaml:5"), "{messages:?}");
    }
}
