//! What programs with mimalloc tell it. It reads the environment before `main` begins, and has filled its first huge pages by then.

use std::{env, os::unix::process::CommandExt as _, process::Command};

/// No huge pages (an idle process keeps 4 to 8 MiB less), and what is free for 100 ms goes back to the system: what a large
/// configuration needed while it was built stayed until the next one by the allocator's own 1,000.
const SETTINGS: [(&str, &str); 2] = [("MIMALLOC_ALLOW_THP", "0"), ("MIMALLOC_PURGE_DELAY", "100")];

/// Has the program run with settings for little memory from its first allocation: it is started once more in its own place (same
/// process, same arguments) with what of them its environment does not say otherwise. Call it first in `main`.
///
/// Where the program cannot be found again (no `/proc`) it goes on as it is.
pub fn save_memory() {
    let unset: Vec<_> = SETTINGS
        .into_iter()
        .filter(|(name, _)| env::var_os(name).is_none())
        .collect();
    let Ok(program) = env::current_exe() else {
        return;
    };
    if unset.is_empty() {
        return;
    }
    let mut arguments = env::args_os();
    let mut again = Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    // Comes back only with an error: then this is the program.
    let _ = again.args(arguments).envs(unset).exec();
}
