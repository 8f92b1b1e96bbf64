//! What analysis looks at, and where it comes from: files, objects that somebody else read, a cluster ([`cluster`]).

use super::{
    Code, Context, Level, Message, Object,
    object::{CONFIG_MAP, MESH_CONFIG, MESH_NETWORKS, text},
};
use crate::validation::command::yaml_files;
use anyhow::Context as _;
use proto::{istio::mesh::v1alpha1::MeshNetworks, json};
use proto_component::process::Usage;
use proto_mesh::mesh_config;
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

pub mod cluster;

/// Collects objects.
#[derive(Debug, Default)]
pub struct Input {
    objects: Vec<Object>,
    /// Text that is no YAML, and what else stands in the way of reading.
    problems: Vec<Message>,
    /// Kinds that are not read, by group and kind.
    unread: HashSet<(String, String)>,
    default_namespace: String,
    mesh_config: Option<Value>,
}

impl Input {
    /// Objects of files that name no namespace are of this one.
    pub fn new(default_namespace: &str) -> Self {
        Self {
            default_namespace: default_namespace.to_owned(),
            ..Self::default()
        }
    }

    /// The objects of a file, of the files of a folder, or (`-`) of standard input.
    pub fn add_path(&mut self, path: &str, is_recursive: bool) -> anyhow::Result<()> {
        if path == "-" {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("read standard input")?;
            self.add_text(&text, "-");
            return Ok(());
        }
        let root = Path::new(path);
        if !root.exists() {
            return Err(Usage(format!("{path}: no such file or folder")).into());
        }
        for file in yaml_files(root).with_context(|| format!("list {path}"))? {
            let is_below = file.parent() != Some(root) && file != root;
            if is_below && !is_recursive {
                continue;
            }
            let bytes = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
            self.add_text(
                &String::from_utf8_lossy(&bytes),
                &file.display().to_string(),
            );
        }
        Ok(())
    }

    /// The objects of a text; `file` is only named.
    pub fn add_text(&mut self, text: &str, file: &str) {
        for document in proto::yaml::parse_documents(text) {
            match document {
                Ok(document) => {
                    let read = Object::from_document(document, file, &self.default_namespace);
                    self.objects.extend(read);
                }
                Err(error) => self.problems.push(Message {
                    code: Code::SchemaValidationError,
                    level: Level::Error,
                    resource: "document".to_owned(),
                    kind: String::new(),
                    namespace: String::new(),
                    name: String::new(),
                    text: format!("The text cannot be read: {}", error.problem),
                    file: file.to_owned(),
                    line: error.line,
                }),
            }
        }
    }

    /// Objects that somebody else read.
    pub fn add_values<'a>(&mut self, values: impl IntoIterator<Item = &'a Value>) {
        self.objects
            .extend(values.into_iter().filter_map(Object::from_value));
    }

    /// Nothing is read of a kind: nobody may say that something of it is missing.
    pub fn leave_out(&mut self, group: &str, kind: &str) {
        self.unread.insert((group.to_owned(), kind.to_owned()));
    }

    /// Whether a kind is to be read.
    pub fn reads(&self, group: &str, kind: &str) -> bool {
        let key = (group.to_owned(), kind.to_owned());
        !self.unread.contains(&key)
    }

    /// Something that stood in the way of reading a kind of object.
    pub fn add_problem(&mut self, code: Code, resource: &str, text: String) {
        self.problems.push(Message {
            code,
            level: code.info().level,
            resource: resource.to_owned(),
            kind: resource.to_owned(),
            namespace: String::new(),
            name: String::new(),
            text,
            file: String::new(),
            line: 0,
        });
    }

    /// The mesh's settings from a file.
    pub fn read_mesh_config(&mut self, file: &PathBuf) -> anyhow::Result<()> {
        let text = fs::read_to_string(file)
            .map_err(|error| Usage(format!("--meshConfigFile {}: {error}", file.display())))?;
        let config = mesh_config::from_yaml(&text)
            .map_err(|error| Usage(format!("--meshConfigFile {}: {error}", file.display())))?;
        self.mesh_config = Some(json::to_value(&config)?);
        Ok(())
    }

    /// The networks of a mesh of several clusters from a file.
    pub fn read_networks(&mut self, file: &PathBuf) -> anyhow::Result<()> {
        let text = fs::read_to_string(file)
            .map_err(|error| Usage(format!("--networksFile {}: {error}", file.display())))?;
        // Old files write a gateway's service in snake case of another name; both are read.
        let value: Value = match proto::yaml::parse_documents(&text).into_iter().next() {
            None => json!({}),
            Some(document) => {
                document
                    .map_err(|error| Usage(format!("--networksFile {}: {error}", file.display())))?
                    .value
            }
        };
        let networks: MeshNetworks = json::from_value(&value)
            .map_err(|error| Usage(format!("--networksFile {}: {error}", file.display())))?;
        let networks = json::to_value(&networks)?;
        self.objects.push(Object::settings(
            MESH_NETWORKS,
            "istio-system",
            "meshnetworks",
            networks,
        ));
        Ok(())
    }

    /// The usual ingress gateway, for files that are looked at without the cluster that has it.
    pub fn add_usual_gateway(&mut self) {
        let labels = json!({"istio": "ingressgateway"});
        let port = |name: &str, port: u16| json!({"name": name, "port": port, "targetPort": port, "protocol": "TCP"});
        let usual = [
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "istio-ingressgateway", "namespace": "istio-system", "labels": labels},
                "spec": {"containers": [{"name": "istio-proxy"}]},
            }),
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "istio-ingressgateway", "namespace": "istio-system"},
                "spec": {
                    "selector": labels,
                    "ports": [port("http2", 80), port("https", 443), port("tcp", 31400), port("tls", 15443)],
                },
            }),
        ];
        // What the files say themselves counts, so that these come first.
        let usual = usual.iter().filter_map(Object::from_value);
        self.objects.splice(0..0, usual);
    }

    /// Everything, indexed; and what could not be read.
    pub fn into_context(mut self) -> anyhow::Result<(Context, Vec<Message>)> {
        let mesh_config = match self.mesh_config.take() {
            Some(config) => config,
            None => match self.mesh_config_of_the_cluster() {
                Some(config) => config,
                None => json::to_value(&mesh_config::defaults())?,
            },
        };
        self.objects.push(Object::settings(
            MESH_CONFIG,
            "istio-system",
            "istio",
            mesh_config,
        ));
        let context = Context::new(self.objects).without(self.unread);
        Ok((context, self.problems))
    }

    /// The `mesh` of ConfigMap `istio`, if it was read and is good.
    fn mesh_config_of_the_cluster(&self) -> Option<Value> {
        let map =
            self.objects.iter().rev().find(|object| {
                object.is(CONFIG_MAP) && object.full_name() == "istio-system/istio"
            })?;
        let config = mesh_config::from_yaml(text(&map.value["data"]["mesh"])).ok()?;
        json::to_value(&config).ok()
    }
}
