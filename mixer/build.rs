//! Compiles the standard templates' `.proto` files into one descriptor set: adapters out of process are called by descriptors,
//! those of the standard templates as well as those that users bring.

#![allow(
    clippy::disallowed_methods,
    reason = "a build script's input is its environment"
)]

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let ours = manifest.join("protos");
    let shared = manifest.join("../proto/protos");
    println!("cargo::rerun-if-changed=protos");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../proto/protos/istio/policy");
    println!("cargo::rerun-if-changed=../proto/protos/istio/mixer/adapter");
    let folder = "mixer/template";
    let mut compiler = protox::Compiler::new([ours.clone(), shared, rpc_status(&out)?])?;
    compiler.include_imports(true).include_source_info(false);
    for entry in fs::read_dir(ours.join(folder))? {
        let name = entry?.file_name();
        compiler.open_file(format!("{folder}/{}", name.to_string_lossy()))?;
    }
    fs::write(
        out.join("templates.bin"),
        compiler.encode_file_descriptor_set(),
    )?;
    Ok(())
}

/// `google/rpc/status.proto` is no well-known file; its one message is all that is needed.
fn rpc_status(out: &std::path::Path) -> Result<PathBuf, Box<dyn Error>> {
    let root = out.join("googleapis");
    fs::create_dir_all(root.join("google/rpc"))?;
    fs::write(
        root.join("google/rpc/status.proto"),
        "syntax = \"proto3\";\npackage google.rpc;\nimport \"google/protobuf/any.proto\";\n\
         message Status {\n  int32 code = 1;\n  string message = 2;\n  repeated google.protobuf.Any details = 3;\n}\n",
    )?;
    Ok(root)
}
