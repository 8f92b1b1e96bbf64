//! Rules of rule: Mixer's actions. Whether the expressions are right, Mixer says.

use std::collections::HashSet;

use proto::istio::policy::v1beta1::Rule;

use crate::finding::Report;
use crate::resource::Metadata;

/// Reports what is wrong.
pub(super) fn check(spec: &Rule, _meta: &Metadata, report: &mut Report) {
    if spec.actions.is_empty()
        && spec.request_header_operations.is_empty()
        && spec.response_header_operations.is_empty()
    {
        report.warning("the rule does nothing: give actions or header operations");
    }
    let mut names = HashSet::new();
    report.each("actions", &spec.actions, |report, action| {
        if action.handler.is_empty() {
            report.warning_at("handler", "the action does nothing: name a handler");
        }
        if !action.name.is_empty() && !names.insert(action.name.clone()) {
            report.warning_at(
                "name",
                format!(
                    "there are two actions {:?}: only one's output can be used",
                    action.name
                ),
            );
        }
    });
}
