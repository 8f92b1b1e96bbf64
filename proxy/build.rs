//! How the program is linked: small.

#![allow(
    clippy::disallowed_methods,
    reason = "a build script is told by its environment what it builds for"
)]

use std::{env, process::Command};

/// The first glibc that reads packed relocations.
const LEAST_GLIBC: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is_own = env::var("HOST").ok() == env::var("TARGET").ok();
    if is_own && glibc().is_some_and(|version| version >= LEAST_GLIBC) {
        // Tables of addresses take 24 bytes an address otherwise, all of which are read at the start: a MiB.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
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
