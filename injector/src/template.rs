//! The template: YAML written in Jinja, rendered for one pod into the containers and volumes to add.

use std::collections::BTreeMap;

use minijinja::value::Rest;
use minijinja::{Environment, UndefinedBehavior, context};
use serde::Deserialize;
use serde_json::Value;

use crate::annotations::PROXY_CONFIG;
use crate::config::{InvalidSettings, Settings};
use crate::pod::Workload;

const NAME: &str = "template";
/// The kind of image whose tag has no suffix.
const DEFAULT_IMAGE: &str = "default";
/// Kinds of images that a tag may be of.
const IMAGE_KINDS: &[&str] = &["debug", "distroless"];

/// A compiled template.
#[derive(Debug)]
pub struct Template(Environment<'static>);

/// What a rendered template asks to add to a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Injection {
    /// Whether HTTP health checks of the application go through the agent.
    #[serde(default, rename = "rewriteAppHTTPProbe")]
    pub rewrite_app_http_probe: bool,
    /// Whether the proxy is an init container that stays (Kubernetes 1.29 and later), so that the application's own init
    /// containers have it too.
    #[serde(default)]
    pub native_sidecar: bool,
    /// Whether the proxy is the first container; the kubelet waits for its `postStart` before it starts the next.
    #[serde(default)]
    pub hold_application_until_proxy_starts: bool,
    /// Annotations by which the node's CNI plugin knows what to intercept; the pod's own count before them.
    #[serde(default, rename = "podRedirectAnnot")]
    pub redirect_annotations: BTreeMap<String, String>,
    /// Run before the application starts.
    #[serde(default)]
    pub init_containers: Vec<Value>,
    /// Run beside the application.
    #[serde(default)]
    pub containers: Vec<Value>,
    /// What those mount.
    #[serde(default)]
    pub volumes: Vec<Value>,
    /// DNS settings of the pod.
    #[serde(default)]
    pub dns_config: Option<Value>,
    /// Secrets for pulling the images.
    #[serde(default)]
    pub image_pull_secrets: Vec<Value>,
}

/// A template that does not compile.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct InvalidTemplate {
    line: usize,
    problem: String,
}

/// Why a template gave nothing usable for a pod.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// It asks for something that is not there.
    #[error("template line {line}: {problem}")]
    Render {
        /// Line of the template.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
    /// The pod's own settings of its proxy are none.
    #[error(transparent)]
    Settings(#[from] InvalidSettings),
    /// What came out is not YAML, or not what is wanted.
    #[error("the rendered template: {0}")]
    Result(String),
}

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// With the line at fault.
    pub fn new(text: &str) -> Result<Self, InvalidTemplate> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment
            .add_template_owned(NAME, text.to_owned())
            .map_err(|error| InvalidTemplate {
                line: error.line().unwrap_or_default(),
                problem: describe(&error),
            })?;
        Ok(Template(environment))
    }

    /// Renders the template for `pod`.
    ///
    /// # Errors
    /// When the template fails on this pod, or gives something that is no injection.
    pub fn render(
        &self,
        settings: &Settings,
        pod: &Value,
        workload: &Workload,
    ) -> Result<Injection, RenderError> {
        let rendering = |error: &minijinja::Error| RenderError::Render {
            line: error.line().unwrap_or_default(),
            problem: describe(error),
        };
        let template = self
            .0
            .get_template(NAME)
            .map_err(|error| rendering(&error))?;
        let (hub, tag) = (
            text(&settings.values["global"]["hub"]),
            text(&settings.values["global"]["tag"]),
        );
        let annotations = pod["metadata"]["annotations"].clone();
        let layers = settings.layers(&workload.namespace, pod);
        let own = annotations[PROXY_CONFIG].as_str().unwrap_or_default();
        let (proxy, proxy_config) = settings.proxy(own, &layers)?;
        let ports = container_ports(pod);
        let application_ports = ports
            .iter()
            .map(|port| port["containerPort"].to_string())
            .collect::<Vec<_>>()
            .join(",");
        let pod_ports_json = Value::from(ports).to_string();
        let yaml = template
            .render(context! {
                pod, workload,
                values => settings.values,
                mesh => settings.mesh,
                proxy, proxy_config,
                annotation => minijinja::Value::from_function(move |key: &str, default: minijinja::Value| {
                    annotations[key].as_str().map_or(default, minijinja::Value::from)
                }),
                image => minijinja::Value::from_function(move |name: &str, kind: Option<String>| {
                    let tag = of_kind(&tag, &kind.unwrap_or_default());
                    if name.contains('/') { name.to_owned() } else { format!("{hub}/{name}:{tag}") }
                }),
                from_json => minijinja::Value::from_function(from_json),
                exclude_port => minijinja::Value::from_function(exclude_port),
                application_ports => minijinja::Value::from_function(move |_: Rest<bool>| application_ports.clone()),
                pod_ports_json => minijinja::Value::from_function(move |_: Rest<bool>| pod_ports_json.clone()),
            })
            .map_err(|error| rendering(&error))?;
        parse(&yaml)
    }
}

fn parse(yaml: &str) -> Result<Injection, RenderError> {
    match proto::yaml::parse_documents(yaml).into_iter().next() {
        None => Ok(Injection::default()),
        Some(Err(error)) => Err(RenderError::Result(error.to_string())),
        Some(Ok(document)) => serde_json::from_value(document.value)
            .map_err(|error| RenderError::Result(error.to_string())),
    }
}

/// The tag of an image of this kind: a suffix, of which a tag has one at most.
fn of_kind(tag: &str, kind: &str) -> String {
    if kind.is_empty() {
        return tag.to_owned();
    }
    let stripped = IMAGE_KINDS
        .iter()
        .find_map(|known| tag.strip_suffix(known)?.strip_suffix('-'));
    let base = stripped.unwrap_or(tag);
    if kind == DEFAULT_IMAGE {
        base.to_owned()
    } else {
        format!("{base}-{kind}")
    }
}

/// The list of excluded inbound ports with the agent's own port in it.
fn exclude_port(port: u32, ports: &str) -> String {
    let port = port.to_string();
    match ports.trim() {
        "" if port == "0" => String::new(),
        "" => port,
        ports if port == "0" || ports.split(',').any(|item| item.trim() == port) => {
            ports.to_owned()
        }
        ports => format!("{ports},{port}"),
    }
}

fn from_json(text: &str) -> Result<minijinja::Value, minijinja::Error> {
    serde_json::from_str::<Value>(text)
        .map(minijinja::Value::from_serialize)
        .map_err(|error| {
            minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, error.to_string())
        })
}

fn container_ports(pod: &Value) -> Vec<Value> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    containers
        .flat_map(|container| container["ports"].as_array().into_iter().flatten())
        .cloned()
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn describe(error: &minijinja::Error) -> String {
    error.detail().map_or_else(
        || error.kind().to_string(),
        |detail| format!("{}: {detail}", error.kind()),
    )
}
