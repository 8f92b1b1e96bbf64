//! How the program is linked: small, and with what runs side by side.

#![allow(
    clippy::disallowed_methods,
    reason = "a build script is told by its environment what it builds for"
)]

use std::{env, fs, io, path::Path, process::Command};

/// The first glibc that reads packed relocations.
const LEAST_GLIBC: (u32, u32) = (2, 36);

/// The functions that run, for the linker; written by `e2e/bench/order`.
const ORDER: &str = "order.ld";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={ORDER}");
    let is_own = env::var("HOST").ok() == env::var("TARGET").ok();
    if is_own && glibc().is_some_and(|version| version >= LEAST_GLIBC) {
        // Tables of addresses take 24 bytes an address otherwise, all of which are read at the start: a MiB.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    if is_release && fs::metadata(ORDER)?.len() > 0 {
        // A page that is touched brings in those around it: functions that run are 3 of the 14 MiB, but lie everywhere.
        let order = format!("-Wl,-T,{}", fs::canonicalize(ORDER)?.display());
        if linker_takes(&order)? {
            println!("cargo::rustc-link-arg-bins={order}");
        }
    }
    Ok(())
}

/// Whether programs can be linked with this argument here: LLD, the compiler's own on most Linux machines, and GNU's linker know it.
fn linker_takes(argument: &str) -> io::Result<bool> {
    let directory = env::var("OUT_DIR").map_err(io::Error::other)?;
    let source = Path::new(&directory).join("tried.rs");
    fs::write(&source, "fn main() {}")?;
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let linker = env::var("RUSTC_LINKER").map(|linker| format!("-Clinker={linker}"));
    let tried = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(flags.split('\u{1f}').filter(|flag| !flag.is_empty()))
        .args(linker)
        .arg(format!("-Clink-arg={argument}"))
        .arg("--target")
        .arg(env::var("TARGET").map_err(io::Error::other)?)
        .arg("-o")
        .args([source.with_extension(""), source])
        .output()?;
    Ok(tried.status.success())
}

/// The version of this machine's glibc, if that is what programs are built for.
fn glibc() -> Option<(u32, u32)> {
    if env::var("CARGO_CFG_TARGET_ENV").ok()? != "gnu" {
        return None;
    }
    let said = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let said = String::from_utf8(said.ok()?.stdout).ok()?;
    let (major, minor) = said.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
