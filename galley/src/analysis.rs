//! Analysis: mistakes that no object shows alone, such as a host that nobody serves or a selector that selects nothing.
//!
//! [`input`] (files, a cluster, a running mesh) → [`object`] (read leniently: an object with mistakes is still looked at) →
//! [`context`] (indexes over all of them) → [`analyzer`]s → [`message`]s → [`suppression`] → [`report`] (people, JSON, SARIF).
//! [`status`] writes what is found back to a cluster's objects; [`folder`] shows what is found in a running Galley's folder. `galley analyze` is [`command`]; `biremectl analyze` runs the same with the objects of a mesh on this machine.
//!
//! Codes, levels and their meaning are those of `istioctl analyze`. A new check is a file in [`analyzer`] and a row in its
//! table; a new code is a row in [`message`].
//!
//! Left out on purpose are codes that Istio itself has taken back: IST0104 and 0105 (0162 and 0158 say it better), 0113 to 0115
//! (mutual TLS that destination rules had to ask for by hand; it goes by itself now), 0117 (a pod without a service is in the mesh),
//! 0122 (0106 tells of expressions that do not compile), 0156 and 0172 (0176 tells of the Gateway API's version). So are those whose
//! inputs are not there: 0001 (an analyzer that fails), 0136 (features have no stage here), 0143 (asks running pods), 0168 and 0169
//! (other releases), 0170 (several clusters).

pub mod analyzer;
pub mod command;
pub mod context;
pub mod folder;
mod follow;
pub mod input;
pub mod message;
pub mod object;
pub mod report;
pub mod status;
pub mod suppression;

pub use context::Context;
pub use input::Input;
pub use message::{Code, Level, Message};
pub use object::{Kind, Object};

use analyzer::Analyzer;
use message::Messages;
use suppression::Suppressions;

/// Runs the analyzers over everything that was read; the messages that nobody suppresses, in the order of their files.
pub fn analyze(
    context: &Context,
    analyzers: &[&dyn Analyzer],
    suppressions: &Suppressions,
) -> Vec<Message> {
    let mut messages = Messages::default();
    for analyzer in analyzers {
        analyzer.analyze(context, &mut messages);
    }
    let mut found = messages.into_sorted();
    found.retain(|message| !suppressions.covers(message, context));
    found
}
