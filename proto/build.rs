//! Compiles our own `.proto` files and the part of Envoy's v3 API that Bireme speaks into Rust types, tonic services
//! and one descriptor set (for proto3 JSON).
//!
//! Envoy's `.proto` files come with the `envoy-types` package; only its files are read, its Rust code is never compiled:
//! generating the closure of what we use takes a second, compiling the whole API takes minutes.

#![allow(
    clippy::disallowed_methods,
    reason = "a build script's input is its environment"
)]

use std::collections::HashSet;
use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message as _;
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};
use protox::prost_reflect::prost_types::{FileDescriptorProto, FileDescriptorSet};

/// Folders of the package `envoy-types` that serve as include paths.
const ENVOY_INCLUDES: &[&str] = &[
    "data-plane-api",
    "xds",
    "googleapis",
    "protoc-gen-validate",
    "cel-spec",
    "client_model",
    "opentelemetry-proto",
];

/// What we use of Envoy's API; imports come along by themselves.
const ENVOY_ROOTS: &[&str] = &[
    "google/rpc/code.proto",
    "envoy/admin/v3/certs.proto",
    "envoy/admin/v3/clusters.proto",
    "envoy/admin/v3/config_dump.proto",
    "envoy/admin/v3/init_dump.proto",
    "envoy/admin/v3/listeners.proto",
    "envoy/admin/v3/memory.proto",
    "envoy/admin/v3/mutex_stats.proto",
    "envoy/admin/v3/server_info.proto",
    "envoy/config/bootstrap/v3/bootstrap.proto",
    "envoy/config/trace/v3/datadog.proto",
    "envoy/config/trace/v3/opentelemetry.proto",
    "envoy/config/trace/v3/skywalking.proto",
    "envoy/config/trace/v3/zipkin.proto",
    "envoy/data/cluster/v3/outlier_detection_event.proto",
    "envoy/data/core/v3/health_check_event.proto",
    "envoy/extensions/access_loggers/file/v3/file.proto",
    "envoy/extensions/access_loggers/filters/cel/v3/cel.proto",
    "envoy/extensions/access_loggers/grpc/v3/als.proto",
    "envoy/extensions/access_loggers/open_telemetry/v3/logs_service.proto",
    "envoy/extensions/access_loggers/stream/v3/stream.proto",
    "envoy/extensions/clusters/aggregate/v3/cluster.proto",
    "envoy/extensions/clusters/dns/v3/dns_cluster.proto",
    "envoy/extensions/clusters/dynamic_forward_proxy/v3/cluster.proto",
    "envoy/extensions/compression/brotli/compressor/v3/brotli.proto",
    "envoy/extensions/compression/brotli/decompressor/v3/brotli.proto",
    "envoy/extensions/compression/gzip/compressor/v3/gzip.proto",
    "envoy/extensions/compression/gzip/decompressor/v3/gzip.proto",
    "envoy/extensions/compression/zstd/compressor/v3/zstd.proto",
    "envoy/extensions/compression/zstd/decompressor/v3/zstd.proto",
    "envoy/extensions/filters/http/buffer/v3/buffer.proto",
    "envoy/extensions/filters/http/compressor/v3/compressor.proto",
    "envoy/extensions/filters/http/cors/v3/cors.proto",
    "envoy/extensions/filters/http/decompressor/v3/decompressor.proto",
    "envoy/extensions/filters/http/dynamic_forward_proxy/v3/dynamic_forward_proxy.proto",
    "envoy/extensions/filters/http/ext_authz/v3/ext_authz.proto",
    "envoy/extensions/filters/http/fault/v3/fault.proto",
    "envoy/extensions/filters/http/grpc_stats/v3/config.proto",
    "envoy/extensions/filters/http/grpc_web/v3/grpc_web.proto",
    "envoy/extensions/filters/http/header_mutation/v3/header_mutation.proto",
    "envoy/extensions/filters/http/header_to_metadata/v3/header_to_metadata.proto",
    "envoy/extensions/filters/http/health_check/v3/health_check.proto",
    "envoy/extensions/filters/http/jwt_authn/v3/config.proto",
    "envoy/extensions/filters/http/local_ratelimit/v3/local_rate_limit.proto",
    "envoy/extensions/filters/http/on_demand/v3/on_demand.proto",
    "envoy/extensions/filters/http/ratelimit/v3/rate_limit.proto",
    "envoy/extensions/filters/http/rbac/v3/rbac.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/http/set_filter_state/v3/set_filter_state.proto",
    "envoy/extensions/filters/http/set_metadata/v3/set_metadata.proto",
    "envoy/extensions/filters/http/wasm/v3/wasm.proto",
    "envoy/extensions/filters/listener/http_inspector/v3/http_inspector.proto",
    "envoy/extensions/filters/listener/original_dst/v3/original_dst.proto",
    "envoy/extensions/filters/listener/original_src/v3/original_src.proto",
    "envoy/extensions/filters/listener/proxy_protocol/v3/proxy_protocol.proto",
    "envoy/extensions/filters/listener/set_filter_state/v3/set_filter_state.proto",
    "envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto",
    "envoy/extensions/filters/network/connection_limit/v3/connection_limit.proto",
    "envoy/extensions/filters/network/direct_response/v3/config.proto",
    "envoy/extensions/filters/network/echo/v3/echo.proto",
    "envoy/extensions/filters/network/ext_authz/v3/ext_authz.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/local_ratelimit/v3/local_rate_limit.proto",
    "envoy/extensions/filters/network/mongo_proxy/v3/mongo_proxy.proto",
    "envoy/extensions/filters/network/rbac/v3/rbac.proto",
    "envoy/extensions/filters/network/redis_proxy/v3/redis_proxy.proto",
    "envoy/extensions/filters/network/set_filter_state/v3/set_filter_state.proto",
    "envoy/extensions/filters/network/sni_cluster/v3/sni_cluster.proto",
    "envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3/sni_dynamic_forward_proxy.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/filters/network/wasm/v3/wasm.proto",
    "envoy/extensions/formatter/metadata/v3/metadata.proto",
    "envoy/extensions/formatter/req_without_query/v3/req_without_query.proto",
    "envoy/extensions/health_check/event_sinks/file/v3/file.proto",
    "envoy/extensions/health_checkers/redis/v3/redis.proto",
    "envoy/extensions/http/early_header_mutation/header_mutation/v3/header_mutation.proto",
    "envoy/extensions/http/original_ip_detection/custom_header/v3/custom_header.proto",
    "envoy/extensions/http/original_ip_detection/xff/v3/xff.proto",
    "envoy/extensions/internal_redirect/allow_listed_routes/v3/allow_listed_routes_config.proto",
    "envoy/extensions/internal_redirect/previous_routes/v3/previous_routes_config.proto",
    "envoy/extensions/internal_redirect/safe_cross_scheme/v3/safe_cross_scheme_config.proto",
    "envoy/extensions/load_balancing_policies/client_side_weighted_round_robin/v3/client_side_weighted_round_robin.proto",
    "envoy/extensions/load_balancing_policies/cluster_provided/v3/cluster_provided.proto",
    "envoy/extensions/load_balancing_policies/least_request/v3/least_request.proto",
    "envoy/extensions/load_balancing_policies/maglev/v3/maglev.proto",
    "envoy/extensions/load_balancing_policies/override_host/v3/override_host.proto",
    "envoy/extensions/load_balancing_policies/pick_first/v3/pick_first.proto",
    "envoy/extensions/load_balancing_policies/random/v3/random.proto",
    "envoy/extensions/load_balancing_policies/ring_hash/v3/ring_hash.proto",
    "envoy/extensions/load_balancing_policies/round_robin/v3/round_robin.proto",
    "envoy/extensions/load_balancing_policies/subset/v3/subset.proto",
    "envoy/extensions/load_balancing_policies/wrr_locality/v3/wrr_locality.proto",
    "envoy/extensions/network/dns_resolver/cares/v3/cares_dns_resolver.proto",
    "envoy/extensions/network/dns_resolver/getaddrinfo/v3/getaddrinfo_dns_resolver.proto",
    "envoy/extensions/path/match/uri_template/v3/uri_template_match.proto",
    "envoy/extensions/path/rewrite/uri_template/v3/uri_template_rewrite.proto",
    "envoy/extensions/request_id/uuid/v3/uuid.proto",
    "envoy/extensions/resource_monitors/cgroup_memory/v3/cgroup_memory.proto",
    "envoy/extensions/resource_monitors/downstream_connections/v3/downstream_connections.proto",
    "envoy/extensions/resource_monitors/fixed_heap/v3/fixed_heap.proto",
    "envoy/extensions/resource_monitors/injected_resource/v3/injected_resource.proto",
    "envoy/extensions/retry/host/omit_canary_hosts/v3/omit_canary_hosts.proto",
    "envoy/extensions/retry/host/omit_host_metadata/v3/omit_host_metadata_config.proto",
    "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto",
    "envoy/extensions/retry/priority/previous_priorities/v3/previous_priorities_config.proto",
    "envoy/extensions/tracers/opentelemetry/resource_detectors/v3/dynatrace_resource_detector.proto",
    "envoy/extensions/tracers/opentelemetry/resource_detectors/v3/environment_resource_detector.proto",
    "envoy/extensions/tracers/opentelemetry/resource_detectors/v3/static_config_resource_detector.proto",
    "envoy/extensions/tracers/opentelemetry/samplers/v3/always_on_sampler.proto",
    "envoy/extensions/tracers/opentelemetry/samplers/v3/dynatrace_sampler.proto",
    "envoy/extensions/tracers/opentelemetry/samplers/v3/parent_based_sampler.proto",
    "envoy/extensions/tracers/opentelemetry/samplers/v3/trace_id_ratio_based_sampler.proto",
    "envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol.proto",
    "envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
    "envoy/extensions/upstreams/tcp/v3/tcp_protocol_options.proto",
    "envoy/service/accesslog/v3/als.proto",
    "envoy/service/auth/v3/external_auth.proto",
    "envoy/service/cluster/v3/cds.proto",
    "envoy/service/discovery/v3/ads.proto",
    "envoy/service/endpoint/v3/eds.proto",
    "envoy/service/extension/v3/config_discovery.proto",
    "envoy/service/listener/v3/lds.proto",
    "envoy/service/ratelimit/v3/rls.proto",
    "envoy/service/route/v3/rds.proto",
    "envoy/service/runtime/v3/rtds.proto",
    "envoy/service/secret/v3/sds.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let ours = manifest.join("protos");
    println!("cargo::rerun-if-changed=protos");
    println!("cargo::rerun-if-changed=build.rs");

    let envoy = envoy_protos(&manifest)?;
    let mut includes = vec![ours.clone()];
    includes.extend(ENVOY_INCLUDES.iter().map(|folder| envoy.join(folder)));

    let mut roots: Vec<String> = ENVOY_ROOTS.iter().map(ToString::to_string).collect();
    collect_protos(&ours, &ours, &mut roots)?;
    roots.sort();

    let descriptors = compile(&roots, &includes)?;
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    fs::write(
        out.join("own.bin"),
        without_envoy(&descriptors).encode_to_vec(),
    )?;
    let extensions = compile_extensions(&descriptors, &envoy, &includes)?;
    fs::write(out.join("extensions.bin"), extensions.encode_to_vec())?;

    let mut config = prost_build::Config::new();
    config
        .enable_type_names()
        // Sorted maps: equal messages encode to equal bytes, so that versions can be content hashes.
        .btree_map(["."])
        .disable_comments(["."])
        .include_file("packages.rs");
    tonic_prost_build::configure()
        .compile_well_known_types(false)
        .disable_comments(["."])
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}

/// The closure of `roots`. Every root gets a compiler of its own: names are resolved against what a file imports, and in one
/// compiler the packages of unrelated files would shadow each other (`common.ratelimit` in Envoy's extensions).
fn compile(roots: &[String], includes: &[PathBuf]) -> Result<FileDescriptorSet, Box<dyn Error>> {
    let mut seen = HashSet::new();
    let mut set = FileDescriptorSet::default();
    for root in roots {
        let mut compiler = compiler(includes);
        compiler.open_file(root)?;
        let files = compiler.file_descriptor_set().file;
        set.file.extend(
            files
                .into_iter()
                .filter(|file| seen.insert(file.name().to_owned())),
        );
    }
    Ok(set)
}

/// `set` without Envoy's files, which none of the others imports.
fn without_envoy(set: &FileDescriptorSet) -> FileDescriptorSet {
    let own = |file: &&FileDescriptorProto| !file.name().starts_with("envoy/");
    FileDescriptorSet {
        file: set.file.iter().filter(own).cloned().collect(),
    }
}

/// Files below some folders, with one ambiguous name written out: `common.dynamic_forward_proxy` is looked for in the nearest
/// package called `common`, which is another one where a file imports both.
struct Qualified(Vec<PathBuf>);

impl FileResolver for Qualified {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        let path = self.0.iter().map(|folder| folder.join(name));
        let Some(path) = path.into_iter().find(|path| path.exists()) else {
            return Err(protox::Error::file_not_found(name));
        };
        let source = fs::read_to_string(path).map_err(protox::Error::new)?;
        let source = source.replace(
            " common.dynamic_forward_proxy.",
            " .envoy.extensions.common.dynamic_forward_proxy.",
        );
        File::from_source(name, &source)
    }
}

fn compiler(includes: &[PathBuf]) -> protox::Compiler {
    let mut resolver = ChainFileResolver::new();
    resolver.add(Qualified(includes.to_vec()));
    resolver.add(GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).include_source_info(false);
    compiler
}

/// Everything that Envoy can be configured with, `known` included: descriptors only, for what users patch into configuration.
/// One compiler does nearly all of them; a file whose names another package shadows gets its own.
fn compile_extensions(
    known: &FileDescriptorSet,
    envoy: &Path,
    includes: &[PathBuf],
) -> Result<FileDescriptorSet, Box<dyn Error>> {
    let base = envoy.join("data-plane-api");
    let mut roots = Vec::new();
    for folder in ["envoy/config", "envoy/extensions"] {
        collect_protos(&base.join(folder), &base, &mut roots)?;
    }
    roots.retain(|root| root.contains("/v3/"));
    roots.sort();
    let mut together = compiler(includes);
    let (mut alone, mut set) = (Vec::new(), known.clone());
    for root in roots {
        if together.open_file(&root).is_err() {
            alone.push(root);
        }
    }
    let mut seen: HashSet<String> = known
        .file
        .iter()
        .map(|file| file.name().to_owned())
        .collect();
    let mut files = together.file_descriptor_set().file;
    for root in &alone {
        // What the package itself cannot resolve (CEL's own messages) is left out.
        if let Ok(found) = compile(std::slice::from_ref(root), includes) {
            files.extend(found.file);
        }
    }
    files.retain(|file| seen.insert(file.name().to_owned()));
    set.file.extend(files);
    Ok(set)
}

/// The `.proto` files of the `envoy-types` package that the lock file names, wherever cargo keeps it.
fn envoy_protos(manifest: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let output = Command::new(env::var("CARGO")?)
        .args([
            "metadata",
            "--format-version=1",
            "--all-features",
            "--locked",
        ])
        .arg("--manifest-path")
        .arg(manifest.join("Cargo.toml"))
        .output()?;
    if !output.status.success() {
        return Err(format!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let package = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "envoy-types")
        .ok_or("the package envoy-types is not in the dependency graph")?;
    let manifest_path = package["manifest_path"]
        .as_str()
        .ok_or("envoy-types has no manifest path")?;
    Ok(Path::new(manifest_path).with_file_name("proto"))
}

/// Adds every `.proto` below `folder` to `roots`, as a path relative to `base`.
fn collect_protos(
    folder: &Path,
    base: &Path,
    roots: &mut Vec<String>,
) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect_protos(&path, base, roots)?;
        } else if path
            .extension()
            .is_some_and(|extension| extension == "proto")
        {
            roots.push(path.strip_prefix(base)?.to_string_lossy().into_owned());
        }
    }
    Ok(())
}
