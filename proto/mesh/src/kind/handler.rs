//! Rules of handler: an adapter with its parameters. Whether the parameters suit the adapter, Mixer says.

use proto::istio::policy::v1beta1::Handler;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(spec: &Handler, _meta: &Metadata, report: &mut Report) {
    match (spec.compiled_adapter.is_empty(), spec.adapter.is_empty()) {
        (true, true) => report.warning("the handler does nothing: give compiledAdapter or adapter"),
        (false, false) => report.warning_at(
            "adapter",
            "compiledAdapter is given too: adapter is ignored",
        ),
        _ => {}
    }
    if spec.connection.is_some() && spec.adapter.is_empty() {
        report.warning_at(
            "connection",
            "only an adapter out of process is connected to: give adapter",
        );
    }
}
