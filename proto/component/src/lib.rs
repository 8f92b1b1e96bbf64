//! How every component process runs: the skeleton around its stages.
//!
//! Flow: [`args`] → [`process::run`] ([`logging`], [`telemetry`], [`tls`] provider, signals) → the component's own
//! bootstrap ([`listen`], [`monitoring`], [`grpc`]) → [`task`]s → [`drain`] → exit code.
//!
//! `kubernetes` (a feature): a client of the Kubernetes API and what it tells.
//!
//! A `main` is ten lines:
//! ```no_run
//! use proto_component::{args::LogArgs, monitoring::Monitoring, process};
//! fn main() -> std::process::ExitCode {
//!     process::run("galley", &LogArgs::default(), |process| async move {
//!         let monitoring = Monitoring::new(&process);
//!         monitoring.bind(":15014", "--monitoringPort").await?.start(&process);
//!         let ready = process.readiness.condition("sources");
//!         ready.set();
//!         process.drain.signaled().await;
//!         Ok(())
//!     })
//! }
//! ```

pub mod allocator;
pub mod args;
pub mod backoff;
pub mod drain;
pub mod fetch;
pub mod file_watcher;
pub mod grpc;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod listen;
pub mod logging;
pub mod monitoring;
pub mod process;
pub mod readiness;
pub mod redact;
pub mod task;
pub mod telemetry;
pub mod tls;
pub mod version;

pub use process::{Process, run};
