//! The parity harness: Envoy is the oracle for what the proxy does.
//!
//! A **group** is a file in `cases/`: an Envoy v3 bootstrap (in a shorter form, see [`bootstrap`]), scripted upstreams and
//! **cases**. A case is what scripted clients do and what is looked at besides their answers: statistics, access-log lines,
//! parts of the admin interface. The group is run against Envoy, then against `bireme-proxy`, at the same addresses, with the
//! same bytes of configuration; any difference between the two outcomes fails the case, unless the case names it with its reason.
//!
//! The way of a run: [`group`] reads and expands a file → [`bootstrap`] writes the configuration → [`process`] starts a proxy →
//! [`run`] plays the cases, with [`upstream`] and [`client`] as the two ends (both speak through [`connection`]),
//! [`change`] for what changes under the running proxy and [`normal`] taking out what changes from run to run → [`compare`] → [`report`]. [`peer`] finds Envoy; where there is none,
//! what it answered when it was last asked is in `recorded/`.
//!
//! ```text
//! parity                     all groups
//! parity http1 routes/pre    a group, or the cases whose name begins so
//! parity show CASE           the configuration, what Envoy answered, what we did
//! parity record              write Envoy's answers down again
//! ```

pub mod bootstrap;
pub mod case;
pub mod change;
pub mod client;
pub mod compare;
pub mod connection;
pub mod extension;
pub mod frames;
pub mod group;
pub mod grpc;
pub mod http1;
pub mod normal;
pub mod peer;
pub mod process;
pub mod report;
pub mod run;
pub mod suite;
pub mod tls;
pub mod upstream;
