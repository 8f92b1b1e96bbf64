//! ECDS: extensions that listeners refer to by name: WasmPlugins, and what EnvoyFilters add as EXTENSION_CONFIG.
//!
//! Listeners hold only the reference, so that a plugin can change without its listeners. The module is fetched by the proxy, or by
//! an agent of Istio's in front of it, which alone knows `oci://`; ours fetches nothing. A proxy that cannot run Wasm refuses the
//! filter, and says so.

use std::time::Duration as StdDuration;

use prost_types::Any;
use proto::envoy::config::core::v3::{
    AsyncDataSource, DataSource, ExtensionConfigSource, HttpUri, RemoteDataSource,
    TypedExtensionConfig, async_data_source, data_source, http_uri,
};
use proto::envoy::extensions::filters::http::wasm::v3::Wasm;
use proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter::ConfigType,
};
use proto::envoy::extensions::wasm::v3::{
    EnvironmentVariables, FailurePolicy, PluginConfig, VmConfig, plugin_config::Vm,
};
use proto::istio::extensions::v1alpha1::{
    EnvValueSource, FailStrategy, PluginPhase, PluginType, PullPolicy, WasmPlugin,
};
use proto::istio::networking::v1alpha3::envoy_filter::ApplyTo;
use proto::istio::r#type::v1beta1::WorkloadMode;

use super::View;
use super::wire::{ads, any};
use crate::config::Config;
use crate::push_context::envoy_filters::Value;
use crate::push_context::telemetry::Side;

/// The type of what is behind the references.
const WASM_TYPE: &str = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
/// Longest time for the module to come.
const FETCH: StdDuration = StdDuration::from_secs(30);

/// The resource called `name`, if it is this proxy's.
#[must_use]
pub fn build(view: &View<'_>, name: &str) -> Option<TypedExtensionConfig> {
    let patched = view
        .patches
        .of(ApplyTo::ExtensionConfig)
        .find_map(|patch| match &patch.value {
            Some(Value::Extension(config)) if config.name == name => Some(config.clone()),
            _ => None,
        });
    patched.or_else(|| {
        let plugins = view.push.wasm_plugins.select(view.proxy);
        let plugin = plugins
            .into_iter()
            .find(|plugin| resource_name(plugin) == name)?;
        Some(TypedExtensionConfig {
            name: name.to_owned(),
            typed_config: Some(any(&filter(plugin))),
        })
    })
}

/// The references of a connection manager at `side` for one phase, larger priorities first. `port` is the workload's.
#[must_use]
pub fn http_filters(
    view: &View<'_>,
    side: Side,
    port: Option<u32>,
    phase: PluginPhase,
) -> Vec<HttpFilter> {
    let plugins = view.push.wasm_plugins.select(view.proxy).into_iter();
    plugins
        .filter(|plugin| plugin.spec.phase() == phase && is_for(&plugin.spec, side, port))
        .map(|plugin| HttpFilter {
            name: resource_name(plugin),
            config_type: Some(ConfigType::ConfigDiscovery(ExtensionConfigSource {
                config_source: Some(ads()),
                type_urls: vec![WASM_TYPE.to_owned()],
                ..ExtensionConfigSource::default()
            })),
            ..HttpFilter::default()
        })
        .collect()
}

fn resource_name(plugin: &Config<WasmPlugin>) -> String {
    format!(
        "extensions.istio.io/wasmplugin/{}.{}",
        plugin.meta.namespace, plugin.meta.name
    )
}

fn is_for(plugin: &WasmPlugin, side: Side, port: Option<u32>) -> bool {
    if plugin.r#type() == PluginType::Network {
        return false;
    }
    if plugin.r#match.is_empty() {
        return true;
    }
    plugin.r#match.iter().any(|condition| {
        let has_mode = match condition.mode() {
            WorkloadMode::Undefined | WorkloadMode::ClientAndServer => true,
            WorkloadMode::Client => side == Side::Client,
            WorkloadMode::Server => side == Side::Server,
        };
        let has_port = condition.ports.is_empty()
            || port.is_none_or(|port| condition.ports.iter().any(|one| one.number == port));
        has_mode && has_port
    })
}

/// The filter itself.
fn filter(plugin: &Config<WasmPlugin>) -> Wasm {
    let spec = &plugin.spec;
    let configuration = spec.plugin_config.as_ref().map(|fields| {
        let json = serde_json::Value::Object(proto_mesh::json_struct::to_json(fields));
        string_any(&json.to_string())
    });
    let policy = match spec.fail_strategy() {
        FailStrategy::FailClose => FailurePolicy::FailClosed,
        FailStrategy::FailOpen => FailurePolicy::FailOpen,
        FailStrategy::FailReload => FailurePolicy::FailReload,
    };
    Wasm {
        config: Some(PluginConfig {
            name: resource_name(plugin),
            root_id: spec.plugin_name.clone(),
            configuration,
            failure_policy: policy as i32,
            vm: Some(Vm::VmConfig(vm(plugin))),
            ..PluginConfig::default()
        }),
    }
}

/// `google.protobuf.StringValue` in an `Any`.
fn string_any(text: &str) -> Any {
    let mut value = Vec::new();
    // Field 1, length-delimited: the only field of a wrapper.
    prost::encoding::string::encode(1, &text.to_owned(), &mut value);
    Any {
        type_url: "type.googleapis.com/google.protobuf.StringValue".to_owned(),
        value,
    }
}

fn vm(plugin: &Config<WasmPlugin>) -> VmConfig {
    let spec = &plugin.spec;
    let environment = spec.vm_config.clone().unwrap_or_default();
    let mut variables = EnvironmentVariables::default();
    for variable in environment.env {
        if variable.value_from() == EnvValueSource::Host {
            variables.host_env_keys.push(variable.name);
        } else {
            variables.key_values.insert(variable.name, variable.value);
        }
    }
    // The agent reads these: how the image is pulled, and which version of the resource this is.
    let extra = [
        (
            "ISTIO_META_WASM_IMAGE_PULL_SECRET",
            spec.image_pull_secret.as_str(),
        ),
        (
            "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION",
            plugin.meta.resource_version.as_str(),
        ),
        (
            "ISTIO_META_WASM_IMAGE_PULL_POLICY",
            match spec.image_pull_policy() {
                PullPolicy::UnspecifiedPolicy => "",
                PullPolicy::IfNotPresent => "IfNotPresent",
                PullPolicy::Always => "Always",
            },
        ),
    ];
    let extra = extra.iter().filter(|(_, value)| !value.is_empty());
    variables
        .key_values
        .extend(extra.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    VmConfig {
        vm_id: String::new(),
        runtime: "envoy.wasm.runtime.v8".to_owned(),
        code: Some(code(spec)),
        environment_variables: Some(variables),
        ..VmConfig::default()
    }
}

fn code(spec: &WasmPlugin) -> AsyncDataSource {
    let url = if spec.url.contains("://") {
        spec.url.clone()
    } else {
        format!("oci://{}", spec.url)
    };
    let specifier = match url.strip_prefix("file://") {
        Some(path) => async_data_source::Specifier::Local(DataSource {
            specifier: Some(data_source::Specifier::Filename(path.to_owned())),
            ..DataSource::default()
        }),
        None => async_data_source::Specifier::Remote(RemoteDataSource {
            http_uri: Some(HttpUri {
                uri: url,
                timeout: prost_types::Duration::try_from(FETCH).ok(),
                // The agent fetches the module and puts a file in the place of this.
                http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster("_".to_owned())),
            }),
            sha256: if spec.sha256.is_empty() {
                "nil".to_owned()
            } else {
                spec.sha256.clone()
            },
            ..RemoteDataSource::default()
        }),
    };
    AsyncDataSource {
        specifier: Some(specifier),
    }
}
